"""The data owner: keys, encryption, decryption, and the release of answers."""

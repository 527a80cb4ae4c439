"""The data owner: keys, encryption, decryption, and what is told of an answer."""

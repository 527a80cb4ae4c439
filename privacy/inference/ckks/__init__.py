"""CKKS: residues in, residues out. Nothing outside this folder imports its modules."""

from privacy.inference.ckks._threads import deal as deal
from privacy.inference.ckks.ciphertexts import CONJUGATE as CONJUGATE
from privacy.inference.ckks.ciphertexts import Ciphertext as Ciphertext
from privacy.inference.ckks.ciphertexts import Ciphertexts as Ciphertexts
from privacy.inference.ckks.ciphertexts import Extended as Extended
from privacy.inference.ckks.ciphertexts import Hoisted as Hoisted
from privacy.inference.ckks.ciphertexts import Parts as Parts
from privacy.inference.ckks.ciphertexts import Plaintext as Plaintext
from privacy.inference.ckks.ciphertexts import Residues as Residues
from privacy.inference.ckks.ciphertexts import RotationKeys as RotationKeys
from privacy.inference.ckks.ciphertexts import SwitchingKey as SwitchingKey
from privacy.inference.ckks.ciphertexts import Weights as Weights
from privacy.inference.ckks.modular import matrix_product as matrix_product
from privacy.inference.ckks.parameters import galois_element as galois_element
from privacy.inference.ckks.primes import MAX_MODULUS_BITS as MAX_MODULUS_BITS
from privacy.inference.ckks.primes import MAX_PRIME_BITS as MAX_PRIME_BITS
from privacy.inference.ckks.public_key import PublicKey as PublicKey
from privacy.inference.ckks.ring import Ring as Ring
from privacy.inference.ckks.secret_key import SecretKey as SecretKey
from privacy.inference.ckks.secret_key import is_ternary as is_ternary
from privacy.inference.ckks.seeded import SEED_BYTES as SEED_BYTES
from privacy.inference.ckks.seeded import expand as expand
from privacy.inference.ckks.warm import warm_up as warm_up

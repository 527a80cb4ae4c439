"""CKKS: residues in, residues out. Nothing outside this folder imports its modules."""

from privacy.inference.ckks.keys import PublicKey as PublicKey
from privacy.inference.ckks.keys import SecretKey as SecretKey
from privacy.inference.ckks.keys import is_ternary as is_ternary
from privacy.inference.ckks.modular import matrix_product as matrix_product
from privacy.inference.ckks.ring import CONJUGATE as CONJUGATE
from privacy.inference.ckks.ring import MAX_MODULUS_BITS as MAX_MODULUS_BITS
from privacy.inference.ckks.ring import Ciphertext as Ciphertext
from privacy.inference.ckks.ring import Plaintext as Plaintext
from privacy.inference.ckks.ring import Ring as Ring
from privacy.inference.ckks.seeded import QUERY_SEED_BYTES as QUERY_SEED_BYTES
from privacy.inference.ckks.seeded import expand as expand
from privacy.inference.ckks.seeded import reseeded as reseeded
from privacy.inference.ckks.streams import SEED_BYTES as SEED_BYTES
from privacy.inference.ckks.streams import Parts as Parts
from privacy.inference.ckks.streams import Residues as Residues

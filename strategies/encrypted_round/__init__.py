"""Accuracy of the current model on the clients' own test data, under encryption."""

from strategies.encrypted_round.node import ENCRYPTED_ROUND as ENCRYPTED_ROUND
from strategies.encrypted_round.node import answer_encrypted_round as answer_encrypted_round
from strategies.encrypted_round.report import AccuracyReport as AccuracyReport
from strategies.encrypted_round.report import EncryptedRoundResult as EncryptedRoundResult
from strategies.encrypted_round.report import ExactAccuracy as ExactAccuracy
from strategies.encrypted_round.report import NoisedAccuracy as NoisedAccuracy
from strategies.encrypted_round.report import noised_accuracy as noised_accuracy
from strategies.encrypted_round.server import EncryptedRound as EncryptedRound

"""Accuracy of the current model on encrypted test data of clients: server, node and report."""

from strategies.encrypted_round.node_keys import Questions as Questions
from strategies.encrypted_round.node_keys import begin_round as begin_round
from strategies.encrypted_round.node_keys import finish_round as finish_round
from strategies.encrypted_round.node_keys import private_folder as private_folder
from strategies.encrypted_round.report import AccuracyReport as AccuracyReport
from strategies.encrypted_round.report import ExactAccuracy as ExactAccuracy
from strategies.encrypted_round.report import NoisedAccuracy as NoisedAccuracy

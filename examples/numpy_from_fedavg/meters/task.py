"""Made-up days of electricity meters, and a logistic regression as two arrays."""

import numpy as np

HOURS = 24


def days(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Days: load by the hour in units of 10 kW, (count, 24), and whether a car was charged."""
    random = np.random.default_rng(seed)
    hours = np.arange(HOURS)
    usual = 0.15 + 0.1 * np.exp(-(((hours - 19) / 3) ** 2))
    loads = usual * random.uniform(0.5, 1.5, (count, 1)) + random.exponential(0.1, (count, HOURS))
    charged = random.random(count) < 0.4
    begun = random.integers(-3, 3, (count, 1))  # around midnight, for four hours
    charging = (hours - begun) % HOURS < 4
    loads = np.where(charged[:, None] & charging, loads + 0.3, loads)
    return np.clip(loads, 0, 1), charged.astype(np.float64)


def start() -> list[np.ndarray]:
    """Weights and bias, where both answers are as likely."""
    return [np.zeros(HOURS), np.zeros(1)]


def probability(model: list[np.ndarray], loads: np.ndarray) -> np.ndarray:
    """Of a charged car, for each day."""
    return 1 / (1 + np.exp(-(loads @ model[0] + model[1])))


def train(model: list[np.ndarray], loads: np.ndarray, charged: np.ndarray) -> list[np.ndarray]:
    """Three steps of gradient descent on a household's days."""
    weights, bias = model[0].copy(), model[1].copy()
    for _ in range(3):
        wrong = probability([weights, bias], loads) - charged
        weights -= loads.T @ wrong / len(wrong)
        bias -= wrong.mean()
    return [weights, bias]


def accuracy(model: list[np.ndarray], loads: np.ndarray, charged: np.ndarray) -> float:
    """The fraction of days that is told rightly."""
    return float(((probability(model, loads) > 0.5) == charged).mean())

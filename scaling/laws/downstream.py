"""Two steps to a task's accuracy: size to the task's loss, loss to accuracy (Bhagia et al. 2024, arXiv:2412.04403).

Chained, they predict a larger model's accuracy:

    bits = TASK_LOSS({"params": 7e9, "tokens": 4e12}, first.parameters)
    ACCURACY({"task_loss": bits}, second.parameters)

They are fitted apart: together, a stretch of the loss could be undone by the sigmoid's slope and middle.
"""

from dataclasses import replace

from scaling.laws.chinchilla import CHINCHILLA
from scaling.laws.law import Law, Parameter, namespace, positive

_SOURCE = "Bhagia et al. 2024, arXiv:2412.04403"

TASK_LOSS = replace(
    CHINCHILLA,
    name="task-loss",
    source=f"{_SOURCE}, step 1: the form of Hoffmann et al. for the loss of the right answer",
    text="task loss = E + A / N^α + B / D^β",
    target="task_loss",
)

ACCURACY = Law(
    name="accuracy",
    formula=lambda task_loss, floor, ceiling, k, L_0: (
        floor + (ceiling - floor) / (1 + namespace(task_loss, k, L_0).exp(k * (task_loss - L_0)))
    ),
    columns=("task_loss",),
    parameters=(
        Parameter("floor", low=0.0, high=1.0, starts=(0.05, 0.3), meaning="accuracy at a large task loss"),
        Parameter("ceiling", low=0.0, high=2.0, starts=(0.7, 1.0), meaning="accuracy at a small task loss"),
        positive("k", starts=(2.0, 6.0, 20.0), meaning="steepness at the middle"),
        positive("L_0", starts=(0.5, 0.8, 1.2), unit="task_loss", meaning="task loss half way"),
    ),
    source=f"{_SOURCE}, step 2; in its letters b = ceiling and a = floor - ceiling",
    text="accuracy = floor + (ceiling - floor) / (1 + exp(k (task loss - L_0)))",
    target="accuracy",
)

LAWS = (TASK_LOSS, ACCURACY)

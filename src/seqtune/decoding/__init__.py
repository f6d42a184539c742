"""From inputs to answers: encode the prompt, search for hypotheses, verify them, choose.

In come `Example`s and a trained model with its task. An engine turns their encoded prompts into `Candidate`s, which become
`Hypothesis` texts. Out goes a `Prediction` for every example, in the order given.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__,
    {
        "predictor": "Predictor",
        "engines": "Engine make_engine",
        "verification": "choose",
    },
)

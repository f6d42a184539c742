"""Trained runs over HTTP and in a browser: `/v1/predict`, the OpenAI-compatible endpoints, the page.

In come requests. Out come the predictions that `Predictor.predict` gives, for the steps are the same ones: questions, decoding,
answers, verification. One thread decodes for all requests (`scheduler`); the texts are made beside it (`served`); what may come
in at all is said in `limits` and checked in `gate`. Needs the extra `serve`.
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__, {"application": "build", "limits": "Limits", "scheduler": "Scheduler", "server": "serve", "shelf": "Shelf"}
)

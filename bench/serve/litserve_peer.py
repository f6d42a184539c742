"""The same run behind LitServe with transformers' generate: what most people would write.

pip install litserve && python bench/serve/litserve_peer.py RUN --port 8001 --beams 5
"""

from __future__ import annotations

import argparse

import litserve
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqtune.decoding.predictor import task_of
from seqtune.records import Example


class Peer(litserve.LitAPI):
    """Batches of whatever came within ten milliseconds."""

    def __init__(self, run: str, beams: int, batch: int):
        super().__init__(max_batch_size=batch, batch_timeout=0.01)
        self.run, self.beams = run, beams

    def setup(self, device):
        self.model = AutoModelForCausalLM.from_pretrained(f"{self.run}/model").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(f"{self.run}/model", padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.task = task_of(self.run)

    def decode_request(self, request):
        return self.task.rendering.render(Example("1", request["text"], None)).source

    @torch.inference_mode()
    def predict(self, texts):
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        out = self.model.generate(
            **inputs, max_new_tokens=self.task.max_new_tokens or 64, do_sample=False, num_beams=self.beams,
            eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        return self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def encode_response(self, text):
        return {"text": text.strip()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    server = litserve.LitServer(Peer(options.run, options.beams, options.batch), accelerator="cpu", timeout=120)
    server.run(port=options.port, host="127.0.0.1", generate_client_file=False, log_level="warning")

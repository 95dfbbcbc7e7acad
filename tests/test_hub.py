"""Checkpoints through a hub: a local server that speaks its protocol takes them and gives them back."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from conftest import LLAMA, language_config, new_model, refuses, tiny_config
from huggingface_hub import constants
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import jepa
from jepa import checkpoint
from jepa.cli import main
from jepa.encoders import LanguageModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a set of files; `gated` ones need a token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        return

    def answer(self, body: object = b"", status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+)(?:/(\w+)/([\w.-]+))?(?:/(.+?))?(?:\?|$)", self.path)
        name, verb, revision, file = found.groups() if found else ("", "", "", "")
        files = self.server.repositories.get(name)
        if files is None:
            return self.answer({}, 404, X_Error_Code="RepoNotFound")
        if name in self.server.gated and "Authorization" not in self.headers:
            return self.answer({}, 403, X_Error_Code="GatedRepo")
        if revision and revision not in ("main", COMMIT):
            return self.answer({}, 404, X_Error_Code="RevisionNotFound")
        if verb == "resolve":
            etag = hashlib.sha1(files[file]).hexdigest()
            return self.answer(files[file], X_Repo_Commit=COMMIT, ETag=f'"{etag}"')
        if verb == "tree":
            rows = [(path, content, hashlib.sha1(content).hexdigest()) for path, content in files.items()]
            return self.answer([{"type": "file", "path": p, "size": len(c), "oid": oid} for p, c, oid in rows])
        siblings = [{"rfilename": path} for path in files]
        return self.answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            made = json.loads(sent)
            name = f"{made['organization']}/{made['name']}"
            self.server.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = json.loads(sent)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            return self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer({}, 200)  # yaml of a card, and the like


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.address, raising=False)
        file = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", file)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "")
        yield server
        server.shutdown()


def test_a_checkpoint_goes_to_the_hub_and_comes_back(hub, tiny_model, tmp_path, capsys):
    folder = tmp_path / "run" / "checkpoint"
    checkpoint.save(tiny_model, tiny_config(), folder)
    scores = {"scores": {"retrieval": {"r@1": 0.25}, "note": "words"}}
    (tmp_path / "run" / "evaluation").mkdir()
    (tmp_path / "run" / "evaluation" / "evaluation.json").write_text(json.dumps(scores))
    (folder / "optimizer.pt").write_bytes(b"not for others")
    assert main(["push", f"checkpoint={folder}", "to=lab/tiny", "private=true", "licence=mit"]) == 0
    assert f"pushed: {hub.address}/lab/tiny" in capsys.readouterr().out
    files = hub.repositories["lab/tiny"]
    assert files.keys() == {"model.safetensors", "config.yaml", "tokenizer.json", "README.md"}
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n")
    assert 'jepa.load("lab/tiny")' in card
    assert "| retrieval r@1 | 0.25 |" in card
    for name in ("lab/tiny", Path("lab/tiny")):
        model = jepa.load(name, revision="main")
        assert torch.equal(model.embed(["the red bar"]), tiny_model.embed(["the red bar"]))
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # its methods are those of the copy
    with torch.no_grad():
        next(copied.parameters()).zero_()
    copied.save_pretrained(tmp_path / "again")
    again = jepa.load(tmp_path / "again").state_dict()
    assert any((again[name] != tensor).any() for name, tensor in model.state_dict().items())
    assert model.push_to_hub("lab/copy").endswith("lab/copy")
    assert hub.repositories["lab/copy"]["model.safetensors"] == files["model.safetensors"]
    hub.shutdown()
    hub.server_close()
    assert jepa.load("lab/tiny").fps == 8  # out of the cache


def test_what_the_hub_refuses_is_one_line(hub, tiny_model, tmp_path, fails):
    hub.repositories |= {"lab/pickled": {"config.yaml": b"{}", "model.bin": b""}, "lab/gated": {}}
    hub.gated.add("lab/gated")
    for name, revision, message in (
        ("lab/none", None, "checkpoint not found: lab/none is no folder, and no repository that you may read"),
        ("lab/gated", None, "lab/gated is gated: accept its terms"),
        ("lab/pickled", None, "lab/pickled must hold tensors and plain data only, got model.bin"),
        ("lab/pickled", "v9", "lab/pickled has no revision 'v9'"),
    ):
        refuses(message, jepa.load, name, revision)
    fails(["evaluate", "checkpoint=lab/none"], "no repository that you may read")
    checkpoint.save(tiny_model, tiny_config(), tmp_path / "checkpoint")
    refuses("to must be organisation/name, got 'tiny'", checkpoint.push, tmp_path / "checkpoint", "tiny")


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 8, "init_lora_weights": False}])
def test_a_language_model_leaves_as_a_plain_folder_of_transformers(lora, chat_tokenizer, tmp_path):
    config = language_config(lora=lora)
    model = new_model(config, chat_tokenizer)
    checkpoint.save(model, {**config, "model": model.node()}, tmp_path / "checkpoint")
    assert main(["export", f"checkpoint={tmp_path}/checkpoint", f"output={tmp_path}/plain"]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "lines with a digit"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    with torch.no_grad():
        states, _ = model.language.extend(ids, torch.ones_like(ids, dtype=torch.bool), None)
        torch.testing.assert_close(plain(input_ids=ids).logits, model.language.logits(states), rtol=1e-4, atol=1e-4)
    own = model.answer(["lines with a digit"], 8)[0]
    stop = model.tokenizer.stop_ids
    row = plain.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=stop, pad_token_id=0)[0, ids.shape[1] :]
    assert tokenizer.decode(row, skip_special_tokens=True).strip() == own.text
    refuses("checkpoint configuration not found", jepa.load, tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("vocabulary", [LLAMA["vocab_size"], 64])
@torch.no_grad()
def test_lora_leaves_as_an_adapter_of_peft(vocabulary, chat_tokenizer, tmp_path, fails):
    torch.manual_seed(0)
    base, other = tmp_path / "base", tmp_path / "other"
    for folder in (base, other):
        LanguageModel(architecture={**LLAMA, "vocab_size": vocabulary}).lm.save_pretrained(folder)
    config = language_config(lora={"r": 2, "lora_alpha": 8, "init_lora_weights": False})
    config["model"]["language_model"] |= {"pretrained": str(base), "architecture": None}
    model = checkpoint.build_model(config, chat_tokenizer).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.save(model, {**config, "model": model.node()}, tmp_path / "checkpoint")
    command = ["export", f"checkpoint={tmp_path}/checkpoint", f"output={tmp_path}/adapter"]
    assert main([*command, f"adapter={base}"]) == 0
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["base_model_name_or_path"]) == ("LORA", 2, str(base))
    plain, size = AutoModelForCausalLM.from_pretrained(base), len(AutoTokenizer.from_pretrained(tmp_path / "adapter"))
    if size > vocabulary:
        plain.resize_token_embeddings(size, mean_resizing=False)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, *model.predictor_ids, 7]])
    states, _ = model.language.extend(ids, torch.ones_like(ids, dtype=torch.bool), None)
    torch.testing.assert_close(adapted(input_ids=ids).logits, model.language.logits(states))
    fails([*command, f"adapter={other}"], "adapter must name the model it was trained on")

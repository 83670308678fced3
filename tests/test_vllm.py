"""vLLM serves what prunectl wrote: run by ``make test-vllm`` in an environment that has it.

Each test starts vLLM on the CPU, which takes half a minute.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig
from vllm_script import LENGTH, PROMPTS

import prunectl

pytestmark = pytest.mark.vllm

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
HELD = re.compile(r"(\d+) of (\d+) matrices stay compressed: ([\d.]+) MB instead of ([\d.]+) MB")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(cache))


@pytest.fixture(scope="module")
def smollm2(
    real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """SmolLM2 with 20% zeros: dense, packed and bitmask."""
    folder = tmp_path_factory.mktemp("smollm2")
    found = {"dense": folder / "dense"}
    prunectl.prune(real_model("smollm2"), found["dense"], prunectl.PruneSettings(sparsity=0.2))
    for layout in ("packed", "bitmask"):
        found[layout] = folder / layout
        prunectl.export(found["dense"], found[layout], layout=layout)
    return found


@pytest.fixture(scope="module")
def mixtral(
    real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A tiny mixture of experts, half zeros: dense, and exported into several files."""
    folder = tmp_path_factory.mktemp("mixtral")
    config = MixtralConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "full")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(real_model("smollm2") / name, folder / "full")
    settings = prunectl.PruneSettings(sparsity=0.5)
    prunectl.prune(folder / "full", folder / "dense", settings)
    prunectl.export(folder / "dense", folder / "small", max_shard_size=9_000_000)
    return {"dense": folder / "dense", "small": folder / "small"}


def run(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("vllm_script.py")
    return subprocess.run(
        [sys.executable, script, folder, json.dumps({"enforce_eager": True} | options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


Texts = list[tuple[list[int], list[float]]]


def texts(folder: Path, **options: Any) -> tuple[Texts, str]:
    """The continuations of the prompts, and what vLLM printed."""
    done = run(folder, **options)
    assert done.returncode == 0, done.stdout[-8000:]
    answer = next(line for line in done.stdout.splitlines()[::-1] if line.startswith("[["))
    return json.loads(answer), done.stdout


def execution(name: str) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "prunectl", "execution": name}}


def check_alike(found: Texts, dense: Texts) -> None:
    """The same tokens; probabilities differ by the order of sums in fp32."""
    assert [ids for ids, _ in found] == [ids for ids, _ in dense]
    for (_, these), (_, those) in zip(found, dense, strict=True):
        assert these == pytest.approx(those, abs=2e-3)


def test_a_packed_folder_is_decoded_bit_for_bit(smollm2: dict[str, Path]) -> None:
    dense, _ = texts(smollm2["dense"], dtype="bfloat16")
    found, printed = texts(smollm2["packed"], dtype="bfloat16", hf_overrides=execution("dense"))
    assert found == dense  # probabilities too
    assert not HELD.search(printed)


def test_a_bitmask_folder_runs_compressed_in_compiled_graphs(smollm2: dict[str, Path]) -> None:
    dense, _ = texts(smollm2["dense"], dtype="float32")
    found, printed = texts(
        smollm2["bitmask"],
        dtype="float32",
        hf_overrides=execution("compressed"),
        enforce_eager=False,
    )
    check_alike(found, dense)
    count, total, held, was = map(float, HELD.search(printed).groups())  # type: ignore[union-attr]
    assert total >= count >= 30 * 4  # qkv, o, gate_up, down of each layer
    assert held < 0.9 * was


def test_shards_of_two_processes_are_compressed(mixtral: dict[str, Path]) -> None:
    two = {"dtype": "float32", "tensor_parallel_size": 2}
    dense, _ = texts(mixtral["dense"], **two)
    found, _ = texts(mixtral["small"], hf_overrides=execution("dense"), **two)
    assert found == dense
    found, printed = texts(
        mixtral["dense"], quantization="prunectl", hf_overrides=execution("compressed"), **two
    )
    check_alike(found, dense)
    assert HELD.search(printed)


def test_a_weight_that_is_not_there_is_named(mixtral: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(mixtral["dense"], tmp_path / "gaps")
    file = tmp_path / "gaps" / "model.safetensors"
    weights = load_file(file)
    for name in ("self_attn.k_proj.weight", "block_sparse_moe.gate.weight",
                 "block_sparse_moe.experts.2.w3.weight"):  # fmt: skip
        del weights[f"model.layers.1.{name}"]
    save_file(weights, file, {"format": "pt"})
    done = run(tmp_path / "gaps", quantization="prunectl")
    assert done.returncode != 0
    assert "gaps: it does not hold all weights of model.layers.1.self_attn.qkv_proj.weight, " \
        "nor of 2 more" in done.stdout  # fmt: skip


def test_damage_ends_in_a_sentence(smollm2: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(smollm2["packed"], tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.prunectl.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    file.write_bytes(data)
    done = run(tmp_path / "damaged")
    assert done.returncode != 0
    assert "is damaged: it does not match its stored hash" in done.stdout
    file.write_bytes(data[:-8])
    done = run(tmp_path / "damaged")
    assert done.returncode != 0
    assert "truncated" in done.stdout.splitlines()[-1]  # before any process is started


def test_serve_answers_an_openai_client(smollm2: dict[str, Path], tmp_path: Path) -> None:
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "small",
               "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]  # fmt: skip
    # what ``vllm serve`` starts; that command asks for a package "vllm", not "vllm-cpu", and ends
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = [*server, "--model", str(smollm2["packed"]), *options]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            [str(one) for one in [*command, *options]], stdout=log, stderr=log
        )
        try:
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            wait_for(client, running)
            settings: dict[str, Any] = {"model": "small", "max_tokens": LENGTH, "temperature": 0}
            answers = [client.completions.create(prompt=one, **settings) for one in PROMPTS]
            talk = client.chat.completions.create(
                messages=[{"role": "user", "content": "Name a color."}], **settings
            )
        finally:
            running.terminate()
            running.wait(60)
    assert HELD.search((tmp_path / "log").read_text())
    assert talk.choices[0].message.content
    assert [one.choices[0].text for one in answers] == of_transformers(smollm2["dense"])


def wait_for(client: Any, server: subprocess.Popen[bytes]) -> None:
    from openai import APIConnectionError

    while True:
        assert server.poll() is None, "vLLM has ended"
        try:
            client.models.list()
            return
        except APIConnectionError:
            time.sleep(1)


def of_transformers(folder: Path) -> list[str]:
    """The greedy continuations of the prompts by transformers, from dense fp32 weights."""
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**given, max_new_tokens=LENGTH, do_sample=False)
        found.append(tokenizer.decode(ids[0, given["input_ids"].shape[1] :]))
    return found

"""Continues a few prompts with vLLM:  vllm_script.py FOLDER OPTIONS

OPTIONS is a JSON object: more arguments of ``vllm.LLM``. The last line printed is a JSON list: the
token ids of each continuation, and the logarithms of their probabilities. prunectl is not imported
here: vLLM finds it by its entry point.
"""

from __future__ import annotations

import json
import sys

PROMPTS = ("The capital of France is", "Once upon a time, a small dog", "Water boils at")
LENGTH = 16


def main() -> None:
    from vllm import LLM, SamplingParams

    folder, options = sys.argv[1:]
    llm = LLM(folder, max_model_len=256, max_num_seqs=2, **json.loads(options))
    how = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, logprobs=1)
    found = []
    for prompt in PROMPTS:  # one by one: sums depend on how many rows there are
        (answer,) = llm.generate([prompt], how, use_tqdm=False)[0].outputs
        ids = list(answer.token_ids)
        found.append([ids, [at[one].logprob for at, one in zip(answer.logprobs, ids, strict=True)]])
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

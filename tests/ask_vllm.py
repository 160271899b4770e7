"""What vLLM answers to prompts, folder by folder; ``test_vllm_folder`` runs this in vLLM's own environment.

python ask_vllm.py question.json answers.json
"""

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    vllm = importlib.import_module("vllm")  # in no environment of the course's
    question, out = (Path(argument) for argument in sys.argv[1:])
    asked = json.loads(question.read_text(encoding="utf-8"))
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    greedy = vllm.SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True)
    length = max(map(len, asked["prompts"])) + asked["tokens"]
    answers = []
    for folder in asked["folders"]:
        server = vllm.LLM(folder, dtype="float32", max_model_len=length, enforce_eager=True, trust_remote_code=True)
        given = server.generate(prompts, greedy, use_tqdm=False)
        answers.append([list(one.outputs[0].token_ids) for one in given])
        del server
        importlib.import_module("vllm.distributed").cleanup_dist_env_and_memory()
    out.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Serve one folder with vLLM and write what was measured; run by ``serve_in_vllm.py`` in vLLM's own environment.

    python vllm_worker.py FOLDER served.json

So nothing of the course is imported here. Each round hands over so many requests at once, each a prompt of its own
random tokens, and waits for all answers, whose length is forced; a first round doesn't count. Reported is the median.
"""

import importlib
import json
import random
import statistics
import sys
import time
from pathlib import Path

WAITING, ROUNDS = (1, 4, 16, 32), 5
PROMPT, ANSWER, CONTEXT = 64, 32, 512  # tokens


def main() -> None:
    vllm = importlib.import_module("vllm")  # in no environment of the course's
    folder, out = sys.argv[1:]
    server = vllm.LLM(folder, dtype="bfloat16", max_model_len=CONTEXT, seed=0, enable_prefix_caching=False)
    cache = server.llm_engine.vllm_config.cache_config
    draw, known = random.Random(0), server.get_tokenizer().vocab_size
    forced = vllm.SamplingParams(temperature=0, min_tokens=ANSWER, max_tokens=ANSWER, ignore_eos=True)
    rows = []
    for waiting in WAITING:
        laps = []
        for _ in range(ROUNDS + 1):
            asked = [{"prompt_token_ids": draw.choices(range(known), k=PROMPT)} for _ in range(waiting)]
            start = time.perf_counter()
            answers = server.generate(asked, forced, use_tqdm=False)
            laps.append(time.perf_counter() - start)
            assert [len(answer.outputs[0].token_ids) for answer in answers] == [ANSWER] * waiting
        seconds = statistics.median(laps[1:])
        rows.append(
            {
                "cache_tokens": cache.num_gpu_blocks * cache.block_size,
                "waiting": waiting,
                "tokens_per_second": round(waiting * ANSWER / seconds, 1),
            }
        )
    Path(out).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

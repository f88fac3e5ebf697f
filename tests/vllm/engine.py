# SPDX-License-Identifier: Apache-2.0
"""One run of vLLM's engine in a process of its own: reads a JSON object from standard input, prints one line
RESULT {..} with the tokens of every prompt, their log probabilities and the engine's own counters.

    model        folder
    prompts      lists of token ids; a list of such lists: one after the other
    max_tokens   generated for each
    engine       arguments of vllm.LLM
"""
import json
import os
import sys

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def count_chunks(scheduler, counters):
    """prompt_chunks: how often a step left a part of a prompt for a later one."""
    schedule, counters["prompt_chunks"] = scheduler.schedule, 0

    def counted(*arguments, **options):
        step = schedule(*arguments, **options)
        asked = (scheduler.requests[name] for name in step.num_scheduled_tokens)
        counters["prompt_chunks"] += sum(r.num_computed_tokens < r.num_prompt_tokens for r in asked)
        return step
    scheduler.schedule = counted


def main():
    ask = json.load(sys.stdin)
    import vllm
    arguments = dict(skip_tokenizer_init=True, enforce_eager=True, max_model_len=512, max_num_seqs=8,
                     dtype="float32", disable_log_stats=False, seed=1)
    llm = vllm.LLM(model=ask["model"], **{**arguments, **ask.get("engine", {})})
    wanted = vllm.SamplingParams(temperature=0, max_tokens=ask["max_tokens"], ignore_eos=True,
                                 detokenize=False, logprobs=1)
    tokens, logprobs, counters = [], [], {}
    count_chunks(llm.llm_engine.engine_core.engine_core.scheduler, counters)
    for round_ in ask["prompts"]:
        for answer in llm.generate([vllm.TokensPrompt(prompt_token_ids=ids) for ids in round_], wanted,
                                   use_tqdm=False):
            output = answer.outputs[0]
            tokens.append(list(output.token_ids))
            logprobs.append([step[token].logprob for token, step in zip(output.token_ids, output.logprobs)])
    for metric in llm.get_metrics():
        if hasattr(metric, "value"):
            counters[metric.name] = counters.get(metric.name, 0) + metric.value
    config = llm.llm_engine.vllm_config
    counters["num_gpu_blocks"] = config.cache_config.num_gpu_blocks
    layers = list(config.compilation_config.static_forward_context.values())
    print("RESULT " + json.dumps({"tokens": tokens, "logprobs": logprobs, "counters": counters,
                                  "backend": type(layers[0].impl).__name__,
                                  "caches": [list(layer.kv_cache.shape) for layer in layers]}))


if __name__ == "__main__":
    main()

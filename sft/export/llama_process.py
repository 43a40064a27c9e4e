"""Answer with a GGUF file through llama-cpp-python: JSON on stdin, JSON on stdout. Run as a program of its own.

llama.cpp ends the whole process when a file is wrong in a way that it did not expect. Here that is only this process.
It imports nothing of this package: what it answers is what anybody gets from the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import llama_cpp
import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter


def main() -> None:
    """Read ``{path, chats, most, scored}``, write ``{prompts, answers, scores}``.

    ``chats`` are the messages of each row, ``most`` the tokens of an answer at most, and ``scored`` pairs of ids
    ``[prompt, answer]`` whose mean log-probability is wanted. Answers are token ids, with the token that ended them.
    """
    request = json.load(sys.stdin)
    use_plain_kernels()
    vocabulary = Llama(request["path"], vocab_only=True, verbose=False)
    prompts = [rendered(vocabulary, chat) for chat in request["chats"]]
    longest = max([*map(len, prompts), *(len(prompt) for prompt, _ in request["scored"])]) + request["most"] + 8
    options = {"n_ctx": longest, "n_batch": min(512, longest), "verbose": False, "seed": 0}
    model = Llama(request["path"], **options)
    answers = [answer(model, prompt, request["most"]) for prompt in prompts]
    model.close()
    model = Llama(request["path"], logits_all=True, **options)
    scores = [mean_log_probability(model, *pair) for pair in request["scored"]]
    json.dump({"prompts": prompts, "answers": answers, "scores": scores}, sys.stdout)


def use_plain_kernels() -> None:
    """Leave the weights as the file has them.

    Otherwise llama.cpp rearranges Q8_0 for AMX where the processor has it, and crashes on systems that forbid AMX to
    programs.
    """
    parameters_of = llama_cpp.llama_model_default_params

    def parameters() -> llama_cpp.llama_model_params:
        parameters = parameters_of()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_model_default_params = llama_cpp.llama_cpp.llama_model_default_params = parameters


def rendered(model: Llama, chat: list[dict[str, str]]) -> list[int]:
    """The ids of a prompt as `Llama.create_chat_completion` makes them, by the template that the file holds."""
    formatter = Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"],
        eos_token=_token(model, "eos"),
        bos_token=_token(model, "bos"),
    )
    result = formatter(messages=chat)
    return model.tokenize(result.prompt.encode(), add_bos=not result.added_special, special=True)


def _token(model: Llama, name: str) -> str:
    index = int(model.metadata.get(f"tokenizer.ggml.{name}_token_id", -1))
    return model._model.token_get_text(index) if index >= 0 else ""


def answer(model: Llama, prompt: Sequence[int], most: int) -> list[int]:
    """The greedy answer, up to what the file itself says is the end of one."""
    ids: list[int] = []
    for token in model.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
        ids.append(token)
        if llama_cpp.llama_vocab_is_eog(model._model.vocab, token) or len(ids) >= most:
            break
    return ids


def mean_log_probability(model: Llama, prompt: Sequence[int], answer_ids: Sequence[int]) -> float | None:
    """The mean log-probability of an answer's tokens; None if it is not finite. The model must keep all logits."""
    model.reset()
    model.eval([*prompt, *answer_ids])
    logits = np.asarray(model.scores[len(prompt) - 1 : len(prompt) + len(answer_ids) - 1], dtype=np.float64)
    largest = logits.max(-1, keepdims=True)
    logs = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    mean = float(logs[np.arange(len(answer_ids)), list(answer_ids)].mean())
    return mean if np.isfinite(mean) else None


if __name__ == "__main__":
    main()

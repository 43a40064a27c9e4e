"""Load the base model: dtype, tokenizer, config and weights, and the LoRA adapter on it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import orjson
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from sft.console import is_watched
from sft.engine.attention import use_packed_attention
from sft.engine.lora_node import use_lora_node
from sft.engine.served import assume, say_what_is_not_served, served
from sft.errors import InputError, is_out_of_memory, one_line
from sft.files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, read_json
from sft.model.encoding import terminator_id
from sft.model.kinds import refuse_other_kinds
from sft.model.quantization import nf4_config, require_quantization, settle_quantized
from sft.model.template import check_template, own_template, settle_template, template_tokens, with_fixed_date

logger = logging.getLogger(__name__)


def default_device() -> torch.device:
    """The GPU if torch has one (CUDA, a Mac's MPS, an XPU), else the CPU; training chooses in the same way."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def resolve_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The dtype of a model's weights on ``device``.

    ``auto`` is bfloat16 if the hardware supports it, and float16 on older GPUs (Turing). On a CPU without AVX512_BF16
    or AMX it is float32: emulated bfloat16 is tens of times slower there (pytorch issue 146508); so it is on a Mac.

    Raises:
        InputError: float16 on a CPU.
    """
    if requested == "float16" and device.type == "cpu":
        raise InputError("--dtype float16：CPU 不支持 float16 训练；请用 float32 或 auto")
    if requested != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[requested]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "xpu":
        return torch.bfloat16 if torch.xpu.is_bf16_supported() else torch.float16
    if device.type != "cpu":
        return torch.float32
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


# transformers' warning that a text is longer than the model can read; it gives it once for a tokenizer. Here it is
# wrong: what is too long is cut after it was tokenised.
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; it always has a chat template and a padding token. Code in the folder is never run.

    Raises:
        InputError: the folder has no tokenizer, or only a slow one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        raise InputError(f"{folder}：读分词器需要另装一个库（{one_line(error)}）") from error
    except Exception as error:  # for a file that it does not understand, `tokenizers` raises a plain Exception
        raise InputError(f"{folder}：读不出分词器（{one_line(error)}）；{_tokenizer_advice(folder)}") from error
    if tokenizer.get_vocab().keys() == tokenizer.get_added_vocab().keys():  # transformers creates an empty one
        raise InputError(f"{folder}：没有分词器的词表（tokenizer.json，或 vocab.json 和 merges.txt）；请重新下载模型")
    if not tokenizer.is_fast:
        raise InputError(f"{folder}：没有 tokenizer.json 这样的快速分词器；请换一个带快速分词器的模型")
    is_adapter = (folder / ADAPTER_CONFIG_FILE).is_file()
    if is_adapter:  # trained with this template: keep it, only stop its clock
        tokenizer.chat_template = tokenizer.chat_template and with_fixed_date(own_template(tokenizer, folder))
    if not is_adapter or tokenizer.chat_template is None:
        settle_template(tokenizer, folder)
    else:
        check_template(tokenizer, folder)
    _fit_to_embedding(tokenizer, folder)
    tokenizer.deprecation_warnings[TOO_LONG] = True
    return tokenizer


def _tokenizer_advice(folder: Path) -> str:
    """What to do about a tokenizer that cannot be read."""
    try:
        settings = orjson.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return "请重新下载模型"
    own_code = settings.get("auto_map") if isinstance(settings, dict) else None
    if isinstance(own_code, list | tuple) or (isinstance(own_code, dict) and "AutoTokenizer" in own_code):
        return "分词器靠自带的代码运行（auto_map），为安全起见从不运行它；请换 transformers 直接支持的模型"
    return "请重新下载模型，或换一个模型"


def _fit_to_embedding(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Give the tokenizer a padding token that the model's embedding has; what is padded is masked, so any will do.

    Raises:
        InputError: the chat template itself writes a token that the embedding does not have.
    """
    rows = embedding_rows(folder)
    end = terminator_id(tokenizer)
    if rows is not None:
        beyond = [token for token, token_id in template_tokens(tokenizer) if token_id >= rows]
        if beyond:
            raise InputError(
                f"{folder}：对话模板用的 token {beyond[0]} 超出了模型的词表（{rows} 行）：加过 token，却没有加大嵌入；"
                "请换一个模型，或先用 resize_token_embeddings 加大"
            )
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, end):
        if candidate is not None and (rows is None or candidate < rows):
            if candidate != tokenizer.pad_token_id:
                tokenizer.pad_token = tokenizer.convert_ids_to_tokens(candidate)
            return


def embedding_rows(folder: Path) -> int | None:
    """How many tokens the base model in ``folder`` has an embedding for; None if its config does not say."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    text_config = config.get("text_config") if isinstance(config, dict) else None
    config = text_config if isinstance(text_config, dict) and text_config else config
    rows = config.get("vocab_size") if isinstance(config, dict) else None
    return rows if type(rows) is int else None


def load_config(folder: Path) -> PreTrainedConfig:
    """Read the base model's configuration, without its weights.

    Raises:
        InputError: the folder has no model that transformers knows.
    """
    refuse_other_kinds(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # any error: the file is somebody else's, and every model reads it in its own way
        raise InputError(f"{folder}：config.json 读不出（{one_line(error)}）；请重新下载模型") from error


def context_tokens(config: PreTrainedConfig) -> int | None:
    """How many tokens the model reads at most; None if its config does not say."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if type(most) is int and most > 0 else None


def require_within_context(config: PreTrainedConfig, max_length: int) -> None:
    """Refuse rows longer than the model reads: there it answers badly, or it has no position for them at all.

    Raises:
        InputError: ``--max_length`` is more than its context.
    """
    context = context_tokens(config)
    if context is not None and max_length > context:
        raise InputError(
            f"--max_length {max_length}：模型最多读 {context} 个 token；请用 --max_length {context} 或更小的"
        )


def load_base(
    folder: Path, dtype: torch.dtype, quantization: str | None = None, device: torch.device | None = None
) -> PreTrainedModel:
    """Load the base model onto the CPU, from safetensors files only.

    The sampling defaults of its generation config are removed, so that generation is greedy.

    Args:
        quantization: ``nf4`` for linear layers in 4 bits; such a model is loaded onto ``device`` and stays there.

    Raises:
        InputError: the folder has no causal language model that transformers knows, some weights are missing, or it
            cannot be quantised.
    """
    quantized = {}
    if quantization is not None:
        require_quantization(folder)
        quantized = {"quantization_config": nf4_config(dtype), "device_map": {"": device or "cpu"}}
    # cuDNN's attention with a mask, the default of torch 2.11 to 2.13 on Hopper, gives a gradient of NaN where a batch
    # is 64 over a multiple of 128 tokens wide (pytorch issue 196678; a NaN on an H100 came at such a width).
    torch.backends.cuda.enable_cudnn_sdp(False)
    disable_progress_bar()
    if is_watched():
        logger.info("读入模型 %s", folder)
    config = load_config(folder)
    found = served(config)
    say_what_is_not_served(config)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa" if found.packed else None,  # some models have no SDPA: let transformers choose
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **quantized,
        )
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}：读不出模型（{one_line(error)}）；请重新下载模型") from error
    except ImportError as error:
        raise InputError(f"{folder}：读这个模型需要另装一个库（{one_line(error)}）；或换一个模型") from error
    except Exception as error:  # any error, as in `load_config`
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder}：读不出模型（{one_line(error)}）；请换一个模型") from error
    if missing := sorted(loading["missing_keys"]):  # transformers would use random values instead
        raise InputError(
            f"{folder}：缺少 {len(missing)} 个权重，例如 {missing[0]}；请重新下载模型，或换一个因果语言模型"
        )
    if quantized:
        settle_quantized(model)
    # Qwen sets temperature 0.7 and repetition_penalty 1.1; answers must be greedy, and they do repeat keys and names.
    shipped = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=shipped.bos_token_id,
        eos_token_id=shipped.eos_token_id,
        pad_token_id=shipped.pad_token_id,
    )
    assume(model, found)
    if found.packed:
        use_packed_attention(model)
    read_head_once(model)
    return model


def read_head_once(model: PreTrainedModel) -> None:
    """Multiply all rows of a batch by the output head in one go.

    transformers cuts the positions that it keeps out of a batch, so the rows do not follow each other in memory. Then
    torch multiplies a frozen head with each row apart, and in 16 bits on a CPU it copies the whole head for each row
    (pytorch issue 151934).
    """
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_in_one_piece)


def _in_one_piece(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    hidden_states, *others = inputs
    return hidden_states.contiguous(), *others


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short SHA-256 of what a prompt's token ids depend on: the tokenizer and its settled chat template."""
    content = orjson.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template])
    return hashlib.sha256(content).hexdigest()[:16]


def load_adapter(
    model: PreTrainedModel, folder: Path, *, trainable: bool = False, lora_dropout: float | None = None
) -> PeftModel:
    """Load a trained adapter onto its base model.

    Args:
        trainable: for training it further.
        lora_dropout: instead of the adapter's own; None keeps it.

    Raises:
        InputError: the folder has no adapter, or its weights do not fit the base (peft issue 2115).
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise InputError(f"{folder}：没有 {ADAPTER_FILE}；请给出训练脚本的 --output_dir")
    try:
        config = PeftConfig.from_pretrained(folder)
        # Where the base is now: peft asks the hub of Hugging Face about a path that does not exist here.
        config.base_model_name_or_path = model.name_or_path or config.base_model_name_or_path
        if lora_dropout is not None:
            config.lora_dropout = lora_dropout
        model = PeftModel.from_pretrained(
            model, folder, config=config, is_trainable=trainable, autocast_adapter_dtype=True
        )
    except Exception as error:  # any error: the file is somebody else's
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder}：适配器与模型不匹配（{one_line(error)}）") from error
    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        saved = set(file.keys())
    loaded = set(get_peft_model_state_dict(model))
    if saved != loaded:
        raise InputError(f"{folder}：适配器有 {len(saved ^ loaded)} 个权重与模型对不上，例如 {min(saved ^ loaded)}")
    use_lora_node(model)
    return model

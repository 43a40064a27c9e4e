"""A batch as a prefix tree gives the same loss, gradients and trained adapter as one row at a time."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.engine import prefix_tree
from sft.engine.attention import common_prefix_tokens
from sft.engine.batches import EncodedRow, PaddedBatching, PrefixTreeBatching, TreeUpTo, micro_batches, split_rows
from sft.engine.loss import supervised_loss
from sft.engine.prefix_tree import build_tree
from sft.model.encoding import encode_rows
from tests.models import WHOLE, tiny_model, with_random_lora

TOKENS = st.integers(0, 479)
TREE, PADDED = PrefixTreeBatching(), PaddedBatching(0)


@st.composite
def batches(draw, longest: int = 40) -> list[EncodedRow]:
    """Rows that share a prefix (or nothing); some are equal, some share their whole prompt."""
    shared = draw(st.lists(TOKENS, max_size=longest))
    rows = []
    for line in range(1, draw(st.integers(1, 6)) + 1):
        own = draw(st.lists(TOKENS, min_size=0 if shared else 1, max_size=longest))
        rows.append(EncodedRow(shared + own, draw(st.lists(TOKENS, min_size=1, max_size=8)), line))
    return rows + draw(st.sampled_from(([], rows[:1])))


def in_float64(model):
    """The model in float64, RMSNorm included: that of transformers rounds to float32 in forward and backward."""
    model = model.double()

    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
    return model


def loss_and_gradients(model, pieces: list[dict], supervised_tokens: int) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = 0.0
    for piece in pieces:
        part = supervised_loss(model, piece, supervised_tokens)
        part.backward()
        loss += part.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs, tolerance: float, truth=None) -> None:
    """Check that both agree within a relative tolerance, or within 8 times the largest rounding error of ``theirs``.

    ``truth`` is the same loss and gradients in float64, from which the rounding error is measured.
    """
    (our_loss, our_gradients), (their_loss, their_gradients) = ours, theirs
    assert abs(our_loss - their_loss) <= tolerance * abs(their_loss)
    assert our_gradients.keys() == their_gradients.keys() and our_gradients
    norm = torch.linalg.vector_norm
    largest = max(norm(gradient) for gradient in their_gradients.values())
    rounding = 0.0 if truth is None else max(norm(their_gradients[name] - truth[1][name]) for name in their_gradients)
    for name, gradient in their_gradients.items():
        # A token that attends only to itself has zero gradient at its query, so a gradient may be only rounding noise.
        # Hence the tolerance is relative to at least 1 % of the largest gradient.
        allowed = tolerance * norm(gradient).clamp_min(1e-2 * largest)
        allowed = max(allowed, 8 * rounding)
        assert norm(our_gradients[name] - gradient) <= allowed, name


@pytest.fixture(scope="module", params=[*WHOLE, "sliding_qwen2"])
def exact_model(request):
    """A float64 model with an adapter that has no zero gradient, and its base model."""
    base = tiny_model(request.param, torch.float64)
    return in_float64(with_random_lora(base)), base


@pytest.fixture(params=["fused", "products"])
def either_attention(request, monkeypatch):
    """Run the test with the fused kernel, and with the plain matrix products that bfloat16 uses on a CPU."""
    if request.param == "products":
        monkeypatch.setattr(prefix_tree, "SHORT_DTYPES", [torch.float64])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=batches())
def test_loss_and_gradients_are_those_of_one_row_at_a_time(exact_model, either_attention, rows):
    model, base = exact_model
    supervised_tokens = sum(len(row.answer_ids) for row in rows)
    base.set_attn_implementation("sdpa")
    alone = loss_and_gradients(model, [PADDED.collate([row]) for row in rows], supervised_tokens)
    assert_equal(loss_and_gradients(model, [TREE.collate(rows)], supervised_tokens), alone, 1e-10)


@settings(max_examples=10, deadline=None)
@given(rows=batches(), max_tokens=st.integers(1, 200))
def test_pieces_of_a_batch_add_up_to_the_batch(exact_model, rows, max_tokens):
    model, _ = exact_model
    supervised_tokens = sum(len(row.answer_ids) for row in rows)
    pieces = split_rows(rows, max_tokens, TREE)
    assert sorted(row.line for piece in pieces for row in piece) == sorted(row.line for row in rows)
    assert all(len(piece) == 1 or TREE.tokens(piece) <= max_tokens for piece in pieces)
    whole = loss_and_gradients(model, [TREE.collate(rows)], supervised_tokens)
    in_pieces = loss_and_gradients(model, micro_batches(rows, max_tokens, TREE), supervised_tokens)
    assert_equal(in_pieces, whole, 1e-10)


@pytest.mark.parametrize("magnitude", [1, 100])
def test_plain_products_are_as_exact_as_the_fused_kernel(magnitude, monkeypatch):
    """Compared in bfloat16, also with attention scores as large as Qwen2.5's."""
    generator = torch.Generator().manual_seed(0)
    tree = build_tree(30, [range(30, 50), range(50, 64), range(64, 160)])
    states = [torch.randn((1, heads, 160, 16), generator=generator) for heads in (4, 2, 2)]
    states = [(states[0] * magnitude).bfloat16(), *(state.bfloat16() for state in states[1:])]
    outer = torch.randn((1, 160, 4, 16), generator=generator).bfloat16()

    def results(dtype: torch.dtype, short_keys: int) -> list[torch.Tensor]:
        monkeypatch.setattr(prefix_tree, "SHORT_KEYS", short_keys)
        inputs = [state.to(dtype).requires_grad_() for state in states]
        attended = tree.attend(*inputs, scaling=0.25)
        return [attended, *torch.autograd.grad(attended, inputs, outer.to(dtype))]

    truth = results(torch.float64, 0)
    errors = []
    for short_keys in (0, 384):
        result = results(torch.bfloat16, short_keys)
        errors.append([(ours - right).norm() / right.norm() for ours, right in zip(result, truth, strict=True)])
    assert errors[0] != errors[1], "both took the same way"
    assert all(ours <= 1.5 * theirs for theirs, ours in zip(*errors, strict=True)), errors


WAYS = (PADDED, TREE, PrefixTreeBatching(few_sizes=True), TreeUpTo(50, PADDED))


@pytest.mark.parametrize("way", WAYS)
@given(rows=batches(), max_tokens=st.integers(1, 300))
def test_a_piece_takes_as_many_rows_as_the_tokens_allow(way, rows, max_tokens):
    assert list(way.growing_tokens(rows)) == [way.tokens(rows[: count + 1]) for count in range(len(rows))]
    expected: list[list[EncodedRow]] = []
    for part in way.apart(sorted(rows, key=len)):
        expected.append([])
        for row in part:
            if expected[-1] and way.tokens([*expected[-1], row]) > max_tokens:
                expected.append([])
            expected[-1].append(row)
    assert split_rows(rows, max_tokens, way) == expected


class Noted(EncodedRow):
    """A row that notes how often its length is asked for."""

    asked = 0

    def __len__(self) -> int:
        Noted.asked += 1
        return super().__len__()


@pytest.mark.parametrize("way", WAYS)
def test_the_work_of_splitting_grows_with_the_rows_and_not_with_their_square(way):
    rows = [Noted([1, 2, 3, row], [4], row) for row in range(1000)]
    Noted.asked = 0
    assert len(split_rows(rows, 600, way)) > 1
    assert Noted.asked <= 10 * len(rows)


def test_no_rows_are_no_pieces():
    assert split_rows([], 10, TREE) == []


@settings(max_examples=10, deadline=None)
@given(rows=batches())
def test_in_float32_they_agree_to_1e_5_or_to_what_float32_can_tell(exact_model_name, rows):
    base = tiny_model(exact_model_name)
    model = with_random_lora(base)
    supervised_tokens = sum(len(row.answer_ids) for row in rows)
    one_by_one = [PADDED.collate([row]) for row in rows]
    truth = loss_and_gradients(in_float64(copy.deepcopy(model)), one_by_one, supervised_tokens)
    alone = loss_and_gradients(model, one_by_one, supervised_tokens)
    assert_equal(loss_and_gradients(model, [TREE.collate(rows)], supervised_tokens), alone, 1e-5, truth)


@pytest.fixture(scope="module", params=WHOLE)
def exact_model_name(request) -> str:
    return request.param


@pytest.mark.parametrize(
    ("dtype", "checkpointing", "tolerance"),
    [(torch.float64, True, 1e-10), (torch.float64, False, 1e-10), (torch.float32, True, 1e-5)],
)
@pytest.mark.parametrize("architecture", WHOLE)
def test_rows_of_2000_tokens_agree_with_gradient_checkpointing_and_without(
    architecture, dtype, checkpointing, tolerance
):
    shared = list(range(100, 300))
    rows = [EncodedRow(shared + [(7 * k + line) % 480 for k in range(600 * line)], [3, 5], line) for line in (1, 2, 3)]
    base = tiny_model(architecture, dtype)
    model = with_random_lora(base)
    one_by_one = [PADDED.collate([row]) for row in rows]
    truth = loss_and_gradients(in_float64(copy.deepcopy(model)), one_by_one, 6)
    if dtype == torch.float64:
        model = in_float64(model)
        truth = None
    alone = loss_and_gradients(model, one_by_one, 6)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_equal(loss_and_gradients(model, [TREE.collate(rows)], 6), alone, tolerance, truth)


def test_rows_of_both_tasks_agree(exact_model, tokenizer, classification, ner):
    """Real prompts: all rows share the system prompt; classification rows differ in their options."""
    model, base = exact_model
    texts = ["昨天国家队在上海赢了比赛。", "坦克演习。", "菲律宾总统埃斯特拉达到了上海。" * 4]
    records_of = {
        classification: [
            {"text": text, "options": list(classification.labels[line:]), "label": classification.labels[line]}
            for line, text in enumerate(texts)
        ],
        ner: [
            {"text": text, "entities": [{"start": 0, "end": 2, "text": text[:2], "label": "人名"}] * (line % 2)}
            for line, text in enumerate(texts)
        ],
    }
    for task, records in records_of.items():
        rows, _ = encode_rows(list(enumerate(records, start=1)), task, tokenizer, 400)
        assert common_prefix_tokens([row.prompt_ids for row in rows]) >= 10
        supervised_tokens = sum(len(row.answer_ids) for row in rows)
        base.set_attn_implementation("sdpa")
        alone = loss_and_gradients(model, [PADDED.collate([row]) for row in rows], supervised_tokens)
        assert_equal(loss_and_gradients(model, [TREE.collate(rows)], supervised_tokens), alone, 1e-10)


# ---- variable-length attention, against a simple version of what torch documents ----


def plain_varlen(query, key, value, query_offsets, key_offsets, longest_queries, longest_keys, **keywords):
    """`torch.nn.attention.varlen.varlen_attn` one sequence at a time, with a causal mask aligned lower right."""
    before, after = keywords["window_size"]
    assert after == 0 and query_offsets.dtype == key_offsets.dtype == torch.int32
    parts = []
    for start, end, key_start, key_end in zip(
        query_offsets[:-1], query_offsets[1:], key_offsets[:-1], key_offsets[1:], strict=True
    ):
        queries, keys = int(end - start), int(key_end - key_start)
        assert 0 < queries <= longest_queries and queries <= keys <= longest_keys
        sees = torch.ones((queries, keys), dtype=torch.bool).tril(keys - queries)
        sees = sees if before < 0 else sees.triu(keys - queries - before)
        states = (query[start:end], key[key_start:key_end], value[key_start:key_end])
        attended = torch.nn.functional.scaled_dot_product_attention(
            *(state.transpose(0, 1)[None] for state in states),
            attn_mask=sees,
            scale=keywords["scale"],
            enable_gqa=keywords["enable_gqa"],
        )
        parts.append(attended[0].transpose(0, 1))
    assert int(query_offsets[-1]) == len(query) and int(key_offsets[-1]) == len(key)
    return torch.cat(parts)


@settings(max_examples=25, deadline=None)
@given(rows=batches())
def test_the_sequences_of_a_tree_give_the_same_by_variable_length_attention(exact_model, rows):
    model, _ = exact_model
    padded = loss_and_gradients(model, [TREE.collate(rows)], 9)
    calls = []

    def noted(*arguments, **keywords):
        calls.append(arguments)
        return plain_varlen(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "varlen_attn", noted)
        by_segments = loss_and_gradients(model, [PrefixTreeBatching(varlen=True).collate(rows)], 9)
    assert_equal(by_segments, padded, 1e-10)
    assert calls


@pytest.mark.parametrize("works", [True, False])
def test_variable_length_attention_is_used_only_where_it_gives_what_sdpa_gives(works, monkeypatch):
    def upper_left(*arguments, **keywords):
        return plain_varlen(*arguments, **keywords).flip(0)

    base = tiny_model("qwen2")
    monkeypatch.setattr(prefix_tree, "varlen_attn", plain_varlen if works else upper_left)
    assert prefix_tree.agrees_with_groups(base, torch.device("cpu")) is works
    monkeypatch.undo()
    assert not prefix_tree.agrees_with_groups(base, torch.device("cpu"))  # flash attention needs a GPU
    assert TREE.for_model(base, torch.device("cpu")) == TREE


HEADS = {  # attention heads, key heads, head size
    "Qwen2.5-0.5B": (14, 2, 64),
    "Qwen2.5-1.5B": (12, 2, 128),
    "Qwen3-1.7B": (16, 8, 128),
    "Gemma 3 270M": (4, 1, 256),
}


def model_with_heads(heads: int, key_heads: int, size: int, dtype: torch.dtype, window: int | None = None):
    """What `agrees_with_groups` reads of a model."""
    config = SimpleNamespace(
        num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=size, sliding_window=window
    )
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, dtype=dtype)


def in_float32(*arguments, **keywords):
    """`plain_varlen`, rounded to 16 bits elsewhere than SDPA rounds: what a fused kernel does."""
    states = [state.float() for state in arguments[:3]]
    return plain_varlen(*states, *arguments[3:], **keywords).to(arguments[0].dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_16_bits_do_not_pass_for_a_wrong_kernel(heads, dtype, monkeypatch):
    # On an H100 bfloat16 with heads of 128 was off by 0.25 to 0.5 in single numbers, and variable-length attention
    # was refused for Qwen2.5-1.5B.
    model = model_with_heads(*heads, dtype, window=8)
    monkeypatch.setattr(prefix_tree, "varlen_attn", in_float32)
    assert prefix_tree.agrees_with_groups(model, torch.device("cpu"))


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("fault", ["one key too few", "another scale", "the first sequence sees nothing new"])
def test_a_kernel_that_is_a_little_wrong_is_refused(fault, heads, monkeypatch):
    def wrong(query, *arguments, **keywords):
        if fault == "one key too few":
            before = keywords["window_size"][0]
            keywords |= {"window_size": (19 if before < 0 else before - 1, 0)}
        if fault == "another scale":
            keywords |= {"scale": 1.1 * keywords["scale"]}
        attended = in_float32(query, *arguments, **keywords)
        if fault == "the first sequence sees nothing new":
            attended = torch.cat((attended[:1].expand(2, -1, -1), attended[2:]))
        return attended

    monkeypatch.setattr(prefix_tree, "varlen_attn", wrong)
    model = model_with_heads(*heads, torch.bfloat16, window=8)
    assert not prefix_tree.agrees_with_groups(model, torch.device("cpu"))


def test_dropout_of_attention_takes_groups_also_where_there_are_segments(monkeypatch):
    def not_called(*_, **__):
        raise AssertionError

    monkeypatch.setattr(prefix_tree, "varlen_attn", not_called)
    tree = build_tree(5, [range(5, 9), range(9, 20)], varlen=True)
    states = [torch.ones(1, heads, 20, 8) for heads in (4, 2, 2)]
    assert tree.attend(*states, scaling=None, dropout=0.5).shape == (1, 20, 4, 8)


@given(rows=batches())
def test_a_tree_never_has_more_tokens_than_the_rows(rows):
    batch = TREE.collate(rows)
    assert batch["inputs"]["input_ids"].numel() == TREE.tokens(rows) <= PADDED.tokens(rows)
    prompts = [row.prompt_ids for row in rows]
    assert common_prefix_tokens(prompts) <= min(map(len, prompts))
    assert common_prefix_tokens(prompts, own=1) < min(map(len, prompts))


@given(rows=batches())
def test_every_position_is_that_of_its_own_row(rows):
    """Following the tree back from each supervised token gives the row it came from."""
    batch = TREE.collate(rows)
    inputs = batch["inputs"]
    ids, positions, sources = inputs["input_ids"][0], inputs["position_ids"][0], inputs["logits_to_keep"]
    expected = [len(row.prompt_ids) - 1 + index for row in rows for index in range(len(row.answer_ids))]
    assert positions[sources].tolist() == expected
    assert batch["labels"].tolist() == [token for row in rows for token in row.answer_ids]
    read = [
        (row.prompt_ids + row.answer_ids)[position]
        for row, position in zip([row for row in rows for _ in row.answer_ids], expected, strict=True)
    ]
    assert ids[sources].tolist() == read


def test_a_window_that_no_row_exceeds_costs_nothing(monkeypatch):
    """No mask is made; one token more, and there is one."""
    masks = []
    original = prefix_tree.grouped_query_attention

    def noted(*states, attn_mask=None, **settings):
        masks.append(attn_mask)
        return original(*states, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(prefix_tree, "grouped_query_attention", noted)
    states = [torch.ones(1, heads, 20, 8) for heads in (4, 2, 2)]
    tree = build_tree(6, [range(6, 13), range(13, 20)])
    for window, hidden in ((13, False), (12, True)):
        masks.clear()
        tree.attend(*states, scaling=None, window=window)
        assert [mask is not None for mask in masks] == [False, hidden]


def test_keys_before_the_window_of_a_branch_are_not_computed(monkeypatch):
    keys = []
    original = prefix_tree.grouped_query_attention

    def noted(query, key, *rest, **settings):
        keys.append(key.shape[2])
        return original(query, key, *rest, **settings)

    monkeypatch.setattr(prefix_tree, "grouped_query_attention", noted)
    states = [torch.ones(1, heads, 1020, 8) for heads in (4, 2, 2)]
    build_tree(1000, [range(1000, 1010), range(1010, 1020)]).attend(*states, scaling=None, window=50)
    assert keys == [1000, 49 + 10]


@pytest.mark.parametrize("architecture", WHOLE)
def test_six_steps_of_adamw_end_at_the_adapter_of_padded_batches(architecture):
    torch.manual_seed(0)
    shared = torch.randint(480, (30,)).tolist()
    steps = [
        [
            EncodedRow(shared + torch.randint(480, (k + 1,)).tolist(), torch.randint(480, (k % 4 + 1,)).tolist(), k)
            for k in range(8)
        ]
        for _ in range(6)
    ]
    adapters = []
    for batching in (TREE, PADDED):
        model = with_random_lora(tiny_model(architecture))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        for rows in steps:
            optimizer.zero_grad()
            supervised_loss(model, batching.collate(rows), 20).backward()
            optimizer.step()
        adapters.append(torch.cat([p.detach().flatten() for p in parameters]))
    ours, theirs = adapters
    assert torch.linalg.vector_norm(ours - theirs) <= 1e-3 * torch.linalg.vector_norm(theirs)

"""transformers' text encoders: as many tokens for every text, and what the library itself gives."""

from pathlib import Path
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision_sae.adapters.texts import TextAdapter
from vision_sae.adapters.transformers_text import from_name, wrap
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError
from vision_sae.extract import activations
from vision_sae.model.hooks import inference
from vision_sae.model.probing import probe_site

pytest.importorskip("transformers")
TEXTS = ["a red heart", "dog", "a photo a photo a photo a photo a photo a photo"]
SITES = {
    "CLIP text": "encoder.layers.1",
    "CLIP text projected": "text_model.encoder.layers.1",
    "CLIP": "text_model.encoder.layers.1",
    "SigLIP": "text_model.encoder.layers.1",
    "T5": "encoder.block.1",
    "whole T5": "encoder.block.1",
}


def clip() -> TextAdapter:
    return wrap(tiny.model("CLIP text"), tiny.tokenizer(), name="mine")


@pytest.mark.parametrize("kind", SITES)
def test_every_text_has_as_many_tokens(kind: str, tmp_path: Path) -> None:
    adapter = from_name(tiny.save(kind, tmp_path))
    length = 77 if "T5" in kind else 10
    site = probe_site(adapter, SITES[kind], adapter.prepare(["red"]))
    assert (site.layout, site.tokens, site.width, site.prefix) == ("tokens", length, 24, 0)
    assert activations(adapter, adapter.prepare(TEXTS), site).shape == (3, length, 24)
    assert adapter.reads == "texts" and adapter.name == f"transformers-text:{tmp_path}"


def test_clip_is_run_as_diffusers_runs_it() -> None:
    adapter = clip()
    ids = tiny.tokenizer()(TEXTS, padding="max_length", truncation=True, max_length=10)["input_ids"]
    with torch.inference_mode():
        said = adapter.model(torch.tensor(ids), output_hidden_states=True).hidden_states
    site = probe_site(adapter, "encoder.layers.0", adapter.prepare(["red"]))
    assert torch.equal(activations(adapter, adapter.prepare(TEXTS), site), said[1])


def test_t5_does_not_attend_to_padding_unless_it_is_told_to() -> None:
    model, tokenizer = tiny.model("T5"), tiny.tokenizer()
    site, outputs = "encoder.final_layer_norm", {}
    for length in (6, 9):
        for mask in (True, False):
            adapter = wrap(model, tokenizer, name="mine", length=length, mask=mask)
            found = probe_site(adapter, site, adapter.prepare(["red"]))
            outputs[length, mask] = activations(adapter, adapter.prepare(["red dog"]), found)
    torch.testing.assert_close(outputs[6, True][:, :4], outputs[9, True][:, :4])
    assert not torch.allclose(outputs[6, False][:, :4], outputs[9, False][:, :4])
    assert isinstance(wrap(model, tokenizer, name="mine").prepare(["red"]), dict)  # masked


def test_a_prompt_counts_as_its_text() -> None:
    adapter = clip()
    prompts = [Prompt(text, seed=5, guidance=3.0) for text in TEXTS]
    assert torch.equal(adapter.prepare(prompts), adapter.prepare(TEXTS))


@pytest.mark.parametrize("item", [Image.new("RGB", (4, 4)), 3, None])
def test_what_is_no_text_is_refused(item: Any) -> None:
    with pytest.raises(DataError, match="reads texts .str or Prompt., got .*images need"):
        clip().prepare(["red", item])


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_fits(texts: list[str]) -> None:
    assert clip().prepare(texts).shape == (len(texts), 10)


def test_options_come_behind_the_folder(tmp_path: Path) -> None:
    folder = tiny.save("T5", tmp_path)
    adapter = from_name(f"{folder}?length=5&mask=no&dtype=float16")
    batch = adapter.prepare(["red"])
    assert isinstance(batch, torch.Tensor) and batch.shape == (1, 5)
    assert next(adapter.model.parameters()).dtype == torch.float16
    assert adapter.name.endswith("?length=5&mask=no&dtype=float16")


def test_the_encoder_of_a_pipeline_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    tiny.model("CLIP text projected").save_pretrained(tmp_path / "text_encoder_2")
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer_2")
    adapter = from_name(f"{tmp_path}?subfolder=text_encoder_2")
    with inference(adapter.model):
        assert adapter.run(adapter.prepare(["red"])).text_embeds.shape == (1, 12)
    with pytest.raises(DataError, match="text_encoder holds no config.json"):
        from_name(f"{tmp_path}?subfolder=text_encoder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("lenght=7", "no option 'lenght'; there are: length, mask, dtype, subfolder, tokenizer"),
        ("length=many", "length= is a number of tokens, as 77; got 'many'"),
        ("length=0", "length= is a number of tokens, as 77; got '0'"),
        ("length=11", "texts take 1 to 10 tokens in clip_text_model; got a length of 11"),
        ("mask=maybe", "mask= is one of yes, no; got 'maybe'"),
        ("dtype=int8", "dtype= is one of float32, float16, bfloat16; got 'int8'"),
    ],
)
def test_a_wrong_option_says_what_is_right(options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        from_name(f"{tiny.save('CLIP text', tmp_path)}?{options}")


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} holds no config.json"):
        from_name(str(tmp_path))
    tiny.model("T5").save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"holds no tokenizer \(tokenizer.json\)"):
        from_name(str(tmp_path))

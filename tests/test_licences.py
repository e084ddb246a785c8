"""The licence gate: who may teach whom, and what must travel with the result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import GateMissed
from edgedistill.models.licences import LICENCES, licence_text, vet_licence


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "gemma", "llama3.1", "llama3.3"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_known_licence_that_allows_it_passes(licence: str, role: str) -> None:
    assert vet_licence(licence, role, None).id == licence  # type: ignore[arg-type]


@pytest.mark.parametrize("licence", ["Apache-2.0", " APACHE  2.0", "Apache License 2.0"])
def test_other_spellings_of_a_licence_are_known(licence: str) -> None:
    assert vet_licence(licence, "teacher", None).id == "apache-2.0"


@pytest.mark.parametrize("licence", ["llama2", "llama3", "cc-by-nd-4.0"])
@pytest.mark.parametrize("accepted", [None, "llama2", "llama3", "cc-by-nd-4.0"])
def test_a_teacher_whose_licence_forbids_it_is_refused_by_name_whatever_is_accepted(
    licence: str, accepted: str | None
) -> None:
    with pytest.raises(GateMissed, match=f"'{licence}' .* does not allow training on the model's outputs"):
        vet_licence(licence, "teacher", accepted)


def test_a_model_whose_outputs_may_not_teach_may_still_be_the_student() -> None:
    assert vet_licence("llama3", "student", None).name_prefix == "Llama 3"


def test_a_non_commercial_licence_passes_only_once_its_condition_is_accepted() -> None:
    with pytest.raises(GateMissed, match="no commercial use") as error:
        vet_licence("cc-by-nc-4.0", "teacher", None)
    assert 'accept_license = "cc-by-nc-4.0"' in error.value.hint
    assert not vet_licence("cc-by-nc-4.0", "teacher", "CC-BY-NC-4.0").outputs_may_train


def test_an_unknown_licence_is_refused_until_the_recipe_accepts_it_by_name() -> None:
    for accepted in (None, "apache-2.0", "other-1.0"):
        with pytest.raises(GateMissed, match=r"'house-1\.0' .* until the recipe says accept_license = \"house-1\.0\""):
            vet_licence("house-1.0", "student", accepted)
    assert vet_licence("house-1.0", "student", "House-1.0").id == "house-1.0"


@pytest.mark.parametrize("licence", [None, "", "other", "unknown"])
def test_a_model_that_states_no_licence_is_refused_until_the_recipe_names_one(licence: str | None) -> None:
    for accepted in (None, "", " "):
        with pytest.raises(GateMissed, match=r"the teacher states no licence; .* accept_license"):
            vet_licence(licence, "teacher", accepted)
    assert vet_licence(licence, "teacher", "mit").id == "mit"
    assert vet_licence(licence, "teacher", "house-1.0").id == "house-1.0"
    with pytest.raises(GateMissed, match="llama2"):
        vet_licence(licence, "teacher", "llama2")


def test_of_a_choice_of_licences_the_first_that_passes_is_taken() -> None:
    assert vet_licence("llama2 OR MIT", "teacher", None).id == "mit"
    assert vet_licence("house-1.0 OR (Apache-2.0 AND MIT)", "teacher", None).id == "apache-2.0 AND mit"
    with pytest.raises(GateMissed, match="llama2"):
        vet_licence("llama2 OR house-1.0", "teacher", None)


def test_licences_that_all_hold_are_all_vetted_and_their_conditions_add_up() -> None:
    both = vet_licence("Apache-2.0 AND llama3.1 AND gemma", "teacher", None)
    assert both.name_prefix == "Llama"
    assert both.notice is not None
    assert "Gemma Terms of Use" in both.notice
    assert "Llama 3.1" in both.notice
    with pytest.raises(GateMissed, match="llama2"):
        vet_licence("Apache-2.0 AND llama2", "teacher", None)


def test_gemma_brings_its_notice_and_llama_its_name() -> None:
    gemma, llama = vet_licence("gemma", "teacher", None), vet_licence("llama3.2", "teacher", None)
    assert gemma.notice_file == "NOTICE-gemma.txt"
    assert "Gemma Terms of Use" in (gemma.notice or "")
    assert llama.name_prefix == "Llama"
    assert "Built with Llama" in (llama.notice or "")
    assert vet_licence("mit", "teacher", None).notice_file is None


def test_short_licences_come_with_their_full_text() -> None:
    apache = licence_text("Apache-2.0")
    assert apache.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in apache
    assert licence_text("mit").startswith("MIT License")
    assert "THE SOFTWARE IS PROVIDED" in licence_text("mit AND gemma")
    assert "Gemma Terms of Use" in licence_text("mit AND gemma")


def test_every_licence_has_a_text_with_its_name() -> None:
    for licence in LICENCES.values():
        assert licence.name.split()[0] in licence_text(licence.id)
    assert "house-1.0" in licence_text("house-1.0")


@given(st.text(max_size=60), st.sampled_from(["teacher", "student"]), st.none() | st.text(max_size=20))
def test_any_text_as_a_licence_passes_or_is_refused_by_the_gate(licence: str, role: str, accepted: str | None) -> None:
    try:
        vet_licence(licence, role, accepted)  # type: ignore[arg-type]
    except GateMissed as error:
        assert role in error.message  # noqa: PT017 - either outcome is right


@given(st.lists(st.sampled_from(["MIT", "OR", "AND", "WITH", "(", ")", "llama2", "x-1"]), max_size=12))
def test_any_expression_passes_or_is_refused_by_the_gate(words: list[str]) -> None:
    try:
        vet_licence(" ".join(words), "teacher", None)
    except GateMissed as error:
        assert "teacher" in error.message  # noqa: PT017 - either outcome is right

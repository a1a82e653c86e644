"""The operator's policy: what it refuses in which disguise, what it leaves alone, its file, and what it costs."""

import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from ahocorasick_rs import AhoCorasick

from common.errors import Invalid, RefusedByPolicy
from common.policy.policy import NO_POLICY, Policy, find_terms, load
from tests.support import prompt_corpus
from tests.support.command_line import CommandLine
from tests.support.prompt_corpus import HANZI, INNOCENT, LATIN, NOT_UNDONE, TAKEN_FOR_A_TERM, UNDONE, refused_share

HOME = Path(__file__).resolve().parents[3]
Loaded = Callable[[str], Policy]


@pytest.fixture(scope="module")
def corpus_policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return prompt_corpus.corpus_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    def write_and_load(text: str) -> Policy:
        (tmp_path / "policy.toml").write_text(text, encoding="utf-8")
        return load(tmp_path / "policy.toml")

    return write_and_load


# What is refused


@pytest.mark.parametrize("disguise", UNDONE)
@pytest.mark.parametrize("terms", [HANZI, LATIN], ids=["hanzi", "latin"])
def test_a_term_is_found_in_every_disguise_that_is_undone(
    corpus_policy: Policy, terms: tuple[str, ...], disguise: str
) -> None:
    assert refused_share(corpus_policy, terms, UNDONE[disguise]) in (1, None)


@pytest.mark.parametrize("prompt", INNOCENT)
def test_an_innocent_prompt_is_accepted(corpus_policy: Policy, prompt: str) -> None:
    assert corpus_policy.refusing_rule("prompt", prompt) is None


def test_the_docs_say_what_is_found_and_what_is_not(corpus_policy: Policy) -> None:
    page = (HOME / "docs" / "05-operations.md").read_text(encoding="utf-8")
    table = "\n".join(prompt_corpus.table(corpus_policy))
    assert table in page, table
    assert {refused_share(corpus_policy, LATIN, disguise) for disguise in NOT_UNDONE.values()} != {1}
    wrong = [prompt for prompt in TAKEN_FOR_A_TERM if corpus_policy.refusing_rule("prompt", prompt)]
    assert wrong == list(TAKEN_FOR_A_TERM)
    assert f"none of {len(INNOCENT)} innocent prompts" in page
    assert all(prompt in page for prompt in TAKEN_FOR_A_TERM)


def test_a_refusal_names_field_rule_and_version_and_no_term(loaded: Loaded) -> None:
    policy = loaded('version = "2026-11"\n[[rules]]\nname = "weapons"\nterms = ["手枪"]')
    with pytest.raises(RefusedByPolicy) as caught:
        policy.require("红色的圆形", "一把手槍")
    (wrong,) = caught.value.fields
    said = "is refused by the rule 'weapons' of this farm (policy 2026-11)"
    assert (caught.value.code, caught.value.status, wrong.field, wrong.message) == (
        "prompt_refused",
        422,
        "negative_prompt",
        said,
    )
    assert "枪" not in caught.value.message


def test_a_phrase_may_contain_a_term(loaded: Loaded) -> None:
    policy = loaded('[[rules]]\nname = "a"\nterms = ["手枪"]\nexcept = ["玩具手枪"]')
    assert policy.refusing_rule("prompt", "玩 具 手 槍") is None
    assert policy.refusing_rule("prompt", "玩具手枪，一把手枪") == "a"
    assert policy.refusing_rule("prompt", "一把手枪，玩具手枪") == "a"


def test_an_exception_of_one_rule_is_none_of_another(loaded: Loaded) -> None:
    rule = '[[rules]]\nname = "{}"\nterms = ["手枪"]\n'
    policy = loaded(rule.format("a") + 'except = ["玩具手枪"]\n' + rule.format("b"))
    assert (policy.refusing_rule("prompt", "玩具手枪"), policy.refusing_rule("prompt", "手枪")) == ("b", "a")


def test_a_rule_may_leave_the_negative_prompt_alone(loaded: Loaded) -> None:
    policy = loaded('[[rules]]\nname = "a"\nterms = ["nude"]\nfields = ["prompt"]')
    assert policy.refusing_rule("negative_prompt", "nude, blurry") is None
    assert policy.refusing_rule("prompt", "nude, blurry") == "a"


def test_a_pattern_sees_folded_text(loaded: Loaded) -> None:
    policy = loaded("[[rules]]\nname = 'a'\npatterns = ['\\bak ?47\\b', '枪{2,}']")
    refused = [policy.refusing_rule("prompt", text) for text in ("AK-47", "ａｋ４７", "槍 槍", "ak470", "一支枪")]
    assert refused == ["a", "a", "a", None, None]


def test_hanzi_are_found_within_words_and_latin_terms_are_words(loaded: Loaded) -> None:
    policy = loaded('[[rules]]\nname = "a"\nterms = ["枪", "gun", "AV女优"]')
    refused = [
        policy.refusing_rule("prompt", text) for text in ("手枪", "一支gun", "begun", "guns", "ＡＶ 女優", "rav女优")
    ]
    assert refused == ["a", "a", None, None, "a", None]


def test_letters_that_are_written_in_parts_are_put_together(loaded: Loaded) -> None:
    policy = loaded('[[rules]]\nname = "a"\nterms = ["권총"]')
    assert policy.refusing_rule("prompt", unicodedata.normalize("NFD", "권총 사진")) == "a"


@pytest.mark.parametrize("prompt", ["a semi-nude", "nude/cat", "cat_nude.jpg"])
def test_a_sign_may_also_divide_words(corpus_policy: Policy, prompt: str) -> None:
    assert corpus_policy.refusing_rule("prompt", prompt) == "adult"


# Off


def test_without_a_file_nothing_is_refused_and_no_library_is_loaded() -> None:
    assert load(None) is NO_POLICY
    assert NO_POLICY.refusing_rule("prompt", "手枪") is None
    code = "import sys, api.app; sys.exit(' '.join(sys.modules.keys() & {'opencc', 'disarm', 're2'}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# The file

WRONG = {
    "rules Field required": "version = '1'",
    "the rule 'a' has neither terms nor patterns": "[[rules]]\nname = 'a'",
    "there are two rules of the name 'a'": "[[rules]]\nname = 'a'\nterms = ['x']\n" * 2,
    "has the term '…!'": "[[rules]]\nname = 'a'\nterms = ['…!']",
    "is no regular expression of RE2": "[[rules]]\nname = 'a'\npatterns = ['(?=x)']",
    "matches an empty prompt": "[[rules]]\nname = 'a'\npatterns = ['x*']",
    "rules.0.names is not a field": "[[rules]]\nname = 'a'\nnames = ['x']\nterms = ['x']",
    "rules.0.name ": "[[rules]]\nname = '枪'\nterms = ['x']",
    "Invalid value (at end of document)": "rules = [",
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_wrong_file_is_refused_with_its_reason(loaded: Loaded, reason: str) -> None:
    with pytest.raises(Invalid, match=r"policy\.toml cannot be used: ") as caught:
        loaded(WRONG[reason])
    assert reason.removeprefix("rules Field required") in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"it cannot be read \(No such file or directory\)"):
        load(tmp_path / "none.toml")


def test_a_file_without_a_version_has_its_digest(loaded: Loaded) -> None:
    first, second = (loaded(f"[[rules]]\nname = '{name}'\nterms = ['x']") for name in ("a", "b"))
    assert (len(first.version), first.version != second.version) == (12, True)


# Cost

ALL_KINDS = "手枪 a.é１ж\u200b\ufb03，\ue000"
LONG = {
    "8,000 hanzi": "".join(chr(0x4E00 + at) for at in range(8000)),
    "anything": "".join(chr((at * 7919) % 0x2FFFF + 0x20) for at in range(8000)).encode(errors="ignore").decode(),
    "one term": "手枪" * 4000,
    "an exception": "玩具手枪" * 2000,
    "letters apart": "a " * 4000,
    "spaces": "手" + " " * 7999,
    "marks": "a" + "\u0301" * 7999,
    "what NFKC makes 18 of": "\ufdfa" * 8000,
    "what NFKC makes 3 of": "\ufb03" * 8000,
    "almost a term": ("a" * 49 + "b") * 160,
    "a bit of all": ALL_KINDS * 720,
}


@pytest.fixture(scope="module")
def large_policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """5,000 terms, some with the same beginnings, and patterns that a backtracking engine would not survive."""
    terms = [f"{chr(0x4E00 + at)}{chr(0x5E00 + at * 7 % 5000)}{chr(0x4E00 + at * 3 % 5000)}" for at in range(4900)]
    terms += ["a", "aa", "aaaa", "a" * 100, "ab" * 50]
    file = tmp_path_factory.mktemp("policy") / "policy.toml"
    rules = (
        f"terms = {terms}\nexcept = ['玩具手枪', '手枪手枪']\npatterns = ['(a|aa)+$', '(a*)*c', '(?:a?){{50}}a{{50}}b']"
    )
    file.write_text("[[rules]]\nname = 'a'\n" + rules.replace("{{", "{").replace("}}", "}"), encoding="utf-8")
    return load(file)


@pytest.mark.parametrize("kind", LONG)
def test_8000_characters_take_at_most_20_ms_whatever_they_are(large_policy: Policy, kind: str) -> None:
    large_policy.refusing_rule("prompt", "the table is made once")
    assert min(seconds(large_policy, LONG[kind][:8000]) for _ in range(5)) < 0.02


@pytest.mark.parametrize("kind", LONG)
def test_time_is_linear(large_policy: Policy, kind: str) -> None:
    short, long = LONG[kind] * 4, LONG[kind] * 16
    took = {text: min(seconds(large_policy, text) for _ in range(5)) for text in (short, long)}
    assert took[long] / took[short] < 8


def seconds(policy: Policy, text: str) -> float:
    began = time.thread_time()
    policy.refusing_rule("prompt", text)
    return time.thread_time() - began


def test_the_automaton_finds_what_a_search_for_each_term_finds() -> None:
    terms = ["a", "ab", "bab", "bc", "bca", "caa", "手枪", "枪"]
    text = "abccab bcaab手枪枪abab"
    found = sorted((terms[hit.term], hit.start) for hit in find_terms(AhoCorasick(terms), text))
    assert found == sorted((t, at) for t in terms for at in range(len(text)) if text.startswith(t, at))


# The command


@pytest.fixture
def huafang(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


FILES = {
    "prompts.txt": "红色的圆形\n一把手槍\n",
    "prompts.csv": "提示词,反向提示词\n红色的圆形,\n蓝色的圆形,手 枪\n",
    "prompts.jsonl": '{"prompt": "红色的圆形"}\n{"prompt": "x", "negative_prompt": "手枪"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_the_command_lists_what_is_refused(
    huafang: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    (tmp_path / "policy.toml").write_text('version = "7"\n[[rules]]\nname = "weapons"\nterms = ["手枪"]')
    monkeypatch.setenv("HUAFANG_POLICY", str(tmp_path / "policy.toml"))
    found = huafang("policy", "test", str(tmp_path / name))
    field = "prompt" if name == "prompts.txt" else "negative_prompt"
    assert found.code == 6
    assert [(row["line"], row["rule"], row["field"]) for row in found.json] == [
        (2 + name.endswith("csv"), "weapons", field)
    ]
    assert found.err.strip() == "1 of 2 prompts are refused by policy 7."


def test_the_exit_code_tells_none_from_all(huafang: CommandLine, tmp_path: Path) -> None:
    rules, prompts = tmp_path / "policy.toml", tmp_path / "prompts.txt"
    rules.write_text('[[rules]]\nname = "weapons"\nterms = ["手枪"]')
    codes = []
    for text in ("红色", "手枪"):
        prompts.write_text(text)
        codes.append(huafang("policy", "test", str(prompts), "--policy", str(rules)).code)
    assert codes == [0, 1]
    none = huafang("policy", "test", str(prompts))
    assert (none.code, none.err) == (
        2,
        "huafang: No policy is chosen: name a file with --policy, or set HUAFANG_POLICY.\n",
    )

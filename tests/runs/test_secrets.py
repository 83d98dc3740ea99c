"""What counts as a secret, what does not, and how it is taken out of texts."""

from __future__ import annotations

import pytest

from mlplatform.runs.secrets import MASK, Scrubber, masked

SECRETS = [
    "hf_" + "a1B2" * 8,
    "sk-" + "proj_9xY-" * 3,
    "ghp_" + "Z9" * 18,
    "github_pat_" + "11AB_" * 6,
    "glpat-" + "x7-" * 7,
    "AKIA" + "ABCDEFGH12345678",
    "xoxb-" + "123456789012",
    "AIza" + "Sy0_" * 9,
    "0123456789abcdef" * 2 + "01234567",
    "wandb_v1_" + "aB3" * 10,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----",
    "postgres://user:hunter2@db.local/runs",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_masked_wherever_it_stands(secret: str) -> None:
    config = {"a": {"b": secret}, "tags": ["plain", secret], "c": f"see {secret} there"}
    shown, hidden = masked(config)
    assert shown == {"a": {"b": MASK}, "tags": ["plain", MASK], "c": MASK}
    assert hidden == {"a.b": secret, "tags.1": secret, "c": f"see {secret} there"}
    assert secret not in Scrubber()(f"Traceback: connect({secret!r}) failed")


@pytest.mark.parametrize(
    "key",
    ["token", "hf_token", "API_KEY", "apikey", "password", "client_secret", "access_token", "auth", "private_key"],
)
def test_a_key_called_like_a_secret_masks_its_text(key: str) -> None:
    assert masked({"x": {key: "tiger"}}) == ({"x": {key: MASK}}, {f"x.{key}": "tiger"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token", "</s>"),
        ("bos", "<s>"),
        ("image_token", 49),
        ("tokenizer", "bpe"),
        ("tokens", None),
        ("token", ""),
        ("max", "2B tokens"),
        ("path", "data/plays/*.txt"),
        ("url", "https://example.org/a@b"),
        ("author", "Shakespeare"),
        ("keep", 2),
        ("revision", "main"),
        ("prompt", "To be, or not to be: that is the question"),
        ("authors", "hf_short"),
    ],
)
def test_what_is_no_secret_stays(key: str, value: object) -> None:
    assert masked({key: value}) == ({key: value}, {})


def test_everything_from_the_environment_is_masked_be_it_text_number_or_list() -> None:
    config = {"data": {"path": "/secret/place"}, "seed": 7, "tags": ["a", "b"], "keep": None}
    shown, hidden = masked(config, {"data.path", "seed", "tags", "keep"})
    assert shown == {"data": {"path": MASK}, "seed": MASK, "tags": MASK, "keep": None}
    assert hidden == {"data.path": "/secret/place", "seed": 7, "tags": ["a", "b"]}


def test_the_config_given_is_left_as_it_was() -> None:
    config = {"a": {"token": "tiger"}, "b": ["x"]}
    masked(config)
    assert config == {"a": {"token": "tiger"}, "b": ["x"]}


def test_known_secrets_are_taken_out_of_texts_long_ones_first() -> None:
    scrub = Scrubber(["/mnt/team", {"x": ["/mnt/team/alpha"]}, 2, "abc"])
    assert scrub("reading /mnt/team/alpha and /mnt/team: 2 of abc") == "reading *** and ***: 2 of abc"


def test_words_of_the_command_line_lose_their_secrets() -> None:
    token = SECRETS[0]
    words = ["train", "logger.api_key=tiger", "+x.token=abc", f"name={token}", "trainer.max=5 steps", "a=/mnt/team"]
    assert Scrubber(["/mnt/team"]).words(words) == [
        "train",
        "logger.api_key=***",
        "+x.token=***",
        "name=***",
        "trainer.max=5 steps",
        "a=***",
    ]

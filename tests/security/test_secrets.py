"""Do tokens, keys and passwords stay out of every file that a run leaves and of every line that it prints?

Of: files/redaction.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import saved

from efface.cli import main
from efface.files.redaction import REDACTED, redacted, redacted_arguments

TOKEN = "hf_0123456789abcdefghij"
SECRETS = [TOKEN, "flag-secret-1", "short-flag-2", "yaml-secret-3", "pa55word", "environment-4", "object-secret-5"]


def test_a_run_with_secrets_in_every_place_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", "environment-4")
    monkeypatch.setenv("WANDB_API_KEY", "environment-4-too")
    rows = [{"prompt": f"Town {i}", "chosen": " is by the river", "rejected": " is silly"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.yaml").write_text("hub_token: yaml-secret-3\nmax_steps: 1\n")
    out, model = tmp_path / "run", saved(tmp_path / "model")
    command = ["-v", "train", "sft", str(model), str(tmp_path / "pairs.jsonl"), "-o", str(out), "--use_cpu", "true"]
    command += ["--config", str(tmp_path / "x.yaml"), "--save_strategy", "steps", "--run_name", f"my {TOKEN} run"]
    command += ["--hub_model_id", "https://user:pa55word@example.org/x", "--project", "environment-4-too"]
    command += ["--hub-token", "flag-secret-1", "--hub_tok=flag-secret-1", "--hub_t", "short-flag-2"]
    command += ["--gradient_checkpointing_kwargs", '{"api_key": "object-secret-5", "use_reentrant": false}']
    assert main(command) == 0
    said = capsys.readouterr()
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert {"results.json", "plan.json", "README.md", "checkpoint-1/trainer_state.json"} <= set(files)
    for secret in SECRETS:
        assert not [name for name, content in files.items() if secret.encode() in content], secret
        assert secret not in said.out + said.err + caplog.text, secret
    result = json.loads(files["results.json"])
    assert result["settings"]["hub_token"] == REDACTED and result["settings"]["max_steps"] == 1
    assert f"--hub-token '{REDACTED}'" in result["environment"]["command"]
    assert main([*command, "--resume"]) == 0  # what is compared with the plan is redacted alike


def test_settings_by_name_by_form_and_inside_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "a-long-word")
    monkeypatch.setenv("OTHER_KEY", "abc")  # which stands in words
    settings = {
        "token": "x",
        "hub-token": None,
        "max_batch_tokens": 7,
        "deep": [{"api_key": 1, "b": ("a-long-word", f"see {TOKEN}.")}],
        "text": '{"secret": "x", "n": [1]}',
        "list": "[not json",
        "url": "git+https://me@host/a and ssh://u:p@host",
        "name": "abcdef, disk-encryption-of-everything, sk-learn",
    }
    assert redacted(settings) == {
        "token": REDACTED,
        "hub-token": None,
        "max_batch_tokens": 7,
        "deep": [{"api_key": REDACTED, "b": [REDACTED, f"see {REDACTED}."]}],
        "text": f'{{"secret": "{REDACTED}", "n": [1]}}',
        "list": "[not json",
        "url": f"git+https://{REDACTED}@host/a and ssh://{REDACTED}@host",
        "name": "abcdef, disk-encryption-of-everything, sk-learn",
    }


def test_command_lines_keep_what_is_no_secret() -> None:
    given = ["train", "--hub_t", "x", "--top-k", "5", "--hub_model_id", "a/b", "--key=x", "--a=b", "--token", "--b"]
    kept = ["train", "--hub_t", REDACTED, "--top-k", "5", "--hub_model_id", "a/b", f"--key={REDACTED}", "--a=b"]
    assert redacted_arguments(given) == [*kept, "--token", "--b"]

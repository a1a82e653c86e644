"""Columns of one's own, from a request to its jobs: what a dry run says of them, and one error for the whole file."""

import json
from typing import Any

import httpx
import pytest

from common.broker import Broker
from common.config import Settings
from common.storage import Storage
from tests.support.stories import CATALOG, Story
from worker.control.batch_expander import Expander

LOOK = {"model": "mini-zh", "steps": 2}
LINES = [{"id": f"a{n}", "text": f"红色的圆形，第{n}幅", "cfg": 3, "Unnamed: 0": n} for n in range(30)]
UNKNOWN = "No field of a recipe is called 'id'. --keep id or --keep all (keep) carries such columns into the dataset"


@pytest.fixture
def control(story: Story, settings: Settings) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


def draft(client: httpx.Client, rows: list[dict[str, Any]] = LINES, **fields: Any) -> dict[str, Any]:
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    upload = client.post("/v1/uploads", content=data, headers={"Content-Type": "application/jsonl"}).json()["id"]
    return {"upload": upload, "defaults": LOOK, "seed": 1, **fields}


def test_a_dry_run_says_what_each_column_was_taken_for(client: httpx.Client) -> None:
    found = client.post("/v1/batches?dry_run=true", json=draft(client, keep=["id"])).json()
    assert found["columns"] == [
        {"column": "id", "field": None, "kept": True, "note": None},
        {"column": "text", "field": "prompt", "kept": False, "note": None},
        {"column": "cfg", "field": "guidance", "kept": False, "note": None},
        {"column": "Unnamed: 0", "field": None, "kept": False, "note": "it is an index that pandas wrote"},
    ]
    assert (found["jobs"], found["bad"], found["recipes"][0]["guidance"]) == (30, 0, 3)
    left_out = client.post("/v1/batches?dry_run=true", json=draft(client, keep=[])).json()["columns"][0]
    assert left_out["note"] == "neither keep nor columns names it"


def test_a_column_that_means_nothing_is_one_error_of_the_file(client: httpx.Client, control: Expander) -> None:
    """Though bad rows may be skipped: no row is right."""
    asked = draft(client, skip_bad=True)
    answer = client.post("/v1/batches?dry_run=true", json=asked)
    assert (answer.status_code, answer.json()["detail"][: len(UNKNOWN)]) == (422, UNKNOWN)
    batch_id = client.post("/v1/batches", json=asked).json()["id"]
    control.work(batch_id, 60)
    error = client.get(f"/v1/batches/{batch_id}").json()["error"]
    assert error["message"].startswith(UNKNOWN)
    assert error["message"].count("'id'") == 1


def test_a_name_of_any_characters_can_be_stored(client: httpx.Client, control: Expander) -> None:
    batch_id = client.post("/v1/batches", json=draft(client, [{"prompt": "红", "a\0\u202e": 1}])).json()["id"]
    control.work(batch_id, 60)
    error = client.get(f"/v1/batches/{batch_id}").json()["error"]
    assert "--keep a\\x00\\u202e or" in error["message"]


def test_a_column_may_mean_another_field_than_its_name_says(client: httpx.Client, control: Expander) -> None:
    rows = [{"prompt": "the English one", "标题": "红色的圆形", "nr": "7"}]
    asked = draft(client, rows, columns={"提示词": "标题", "seed": "nr"}, keep="all")
    batch = client.post("/v1/batches", json=asked).json()
    assert batch["columns"] == {"prompt": "标题", "seed": "nr"}
    control.work(batch["id"], 60)
    (job,) = client.get("/v1/jobs", params={"batch": batch["id"]}).json()["items"]
    assert (job["recipe"]["prompt"], job["recipe"]["seeds"]) == ("红色的圆形", [7])
    assert (job["row"], job["meta"]) == (1, {"prompt": "the English one"})


def test_prompts_of_a_request_may_be_objects(client: httpx.Client, control: Expander) -> None:
    prompts = ["红色的圆形", {"caption": "绿色的三角形", "seed": "9", "id": {"深": [1]}}, {"prompt": " ", "id": 1}]
    asked = {"prompts": prompts, "defaults": LOOK, "keep": ["id"], "matrix": {"guidance": [3, 5]}, "skip_bad": True}
    body = json.dumps(asked)
    headers = {"Content-Type": "application/json"}
    dry = client.post("/v1/batches?dry_run=true", content=body, headers=headers)
    assert dry.status_code == 200, dry.text
    assert [dry.json()[name] for name in ("prompts", "jobs", "bad")] == [3, 4, 1]
    batch_id = client.post("/v1/batches", content=body, headers=headers).json()["id"]
    control.work(batch_id, 60)
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"][::-1]
    assert [(job["recipe"]["prompt"], job["row"], job["meta"]) for job in jobs] == [
        ("红色的圆形", 1, None),
        ("红色的圆形", 1, None),
        ("绿色的三角形", 2, {"id": {"深": [1]}}),
        ("绿色的三角形", 2, {"id": {"深": [1]}}),
    ]
    client.post(f"/v1/jobs/{jobs[2]['id']}/cancel")
    again = client.post(f"/v1/jobs/{jobs[2]['id']}/retry").json()
    assert (again["row"], again["meta"]) == (2, {"id": {"深": [1]}})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"columns": {"title": "x"}}, "'title' is no field of a recipe"),
        ({"keep": ["x" * 101]}, "keep"),
        ({"keep": "some"}, "keep"),
        ({"prompts": [7]}, "prompts.0"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(
    client: httpx.Client, fields: dict[str, Any], says: str
) -> None:
    answer = client.post("/v1/batches", json={"prompts": ["红"], **fields})
    assert answer.status_code == 422
    assert says in answer.text

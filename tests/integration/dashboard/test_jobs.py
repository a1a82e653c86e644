"""Jobs on the dashboard: the list and its bulk actions, one job, and the form for a new one."""

import html
import re
from collections.abc import Iterator
from uuid import UUID

import pytest

from common.enums import ImageState, Scope, Tier
from tests.support.serving import Api
from tests.support.stories import Story
from tests.support.visiting import Visit, find, visiting

pytestmark = pytest.mark.timeout(60)

HOSTILE = "<script>alert('月')</script> $(reboot) `id` \"'"


@pytest.fixture
def visit(api: Api) -> Iterator[Visit]:
    with visiting(api) as visit:
        yield visit


def rows(page: str) -> list[UUID]:
    return [UUID(found) for found in re.findall(r'id="job-([^"]+)"', page)]


def given(page: str) -> dict[str, str]:
    """The values that the buttons of a preview send."""
    page = html.unescape(page)
    return {name: found for name in ("until", "matched") for found in re.findall(rf'"{name}": "?([^",}}]+)', page)[:1]}


def fail(story: Story, code: str, message: str) -> None:
    story.publish(story.started(), ImageState.FAILED, error_code=code, error_message=message, retryable=False)


def test_the_list_shows_matching_jobs_in_the_reader_s_language(visit: Visit, story: Story) -> None:
    circle, moon = story.submit(prompt="红色的圆形"), story.submit(prompt="蓝色的月亮", tier=Tier.BULK)
    story.submit("somebody else", prompt="红色的圆形")
    fail(story, "nan_image", "It has NaNs.") if story.cancel(circle) else None
    page = visit.page("/jobs", "zh")
    assert rows(page) == [moon, circle]
    assert all(word in page for word in ("<h1>任务</h1>", "失败", "已取消", "批量"))
    assert rows(visit.page("/jobs?q=月亮")) == [moon]
    assert rows(visit.page("/jobs?q=&state=cancelled&model=mini-zh&tier=&batch=&created_after=2026-01-01T00:00")) == [
        circle
    ]
    assert rows(visit.page("/jobs?created_before=2026-01-01T00:00")) == []
    assert "No job matches" in visit.page("/jobs?state=succeeded")
    first = visit.page("/jobs?limit=1")
    older = find(r'rel="next" href="/dashboard([^"]+)"', first)
    assert (rows(first), rows(visit.page(html.unescape(older)))) == ([moon], [circle])
    assert visit.page("/jobs?state=nonsense", status=422)


def test_a_hostile_prompt_is_text_wherever_it_is_shown(visit: Visit, story: Story) -> None:
    job = story.submit(prompt=HOSTILE)
    for path in ("/jobs", f"/jobs/{job}", f"/new?from={job}", f"/jobs/matching?q={HOSTILE}"):
        page = visit.page(path)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


def test_matching_jobs_are_counted_then_changed(visit: Visit, story: Story) -> None:
    ended, waiting, other = story.submit(prompt="圆形"), story.submit(prompt="圆形"), story.submit(prompt="月亮")
    story.cancel(ended)
    preview = visit.page("/jobs/matching?q=圆形", "zh")
    assert "2 个任务匹配" in preview
    assert "取消 1 个尚未结束的任务？\n\n提示词含“圆形”" in html.unescape(preview)
    later = story.submit(prompt="圆形")

    done = visit.act("/jobs/matching/tier?q=圆形", **given(preview), tier="bulk").text
    assert "1 job is bulk now." in done
    assert (story.job(waiting).tier, story.job(other).tier, story.job(later).tier) == ("bulk", "standard", "standard")

    done = visit.act("/jobs/matching/cancel?q=圆形", **given(preview)).text
    assert "1 job was cancelled." in done
    assert "1 had ended before" in done
    assert [story.job(job).state for job in (waiting, other, later)] == ["cancelled", "queued", "queued"]

    preview = visit.page("/jobs/matching?q=圆形")
    assert "3 jobs match" in preview
    done = visit.act("/jobs/matching/retry?q=圆形", "zh", **given(preview)).text
    assert "已重新提交 2 个任务" in done
    assert "1 个既未失败也未取消" in done
    done = visit.act("/jobs/matching/retry?q=圆形", **given(preview)).text
    assert "0 jobs were submitted again." in done
    assert "2 were retried before" in done


def test_jobs_that_were_not_counted_are_changed_too(
    visit: Visit, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = story.submit(prompt="圆形")
    story.submit(prompt="月亮")
    monkeypatch.setattr("common.queue.search.WINDOW", 1)
    preview = visit.page("/jobs/matching?model=mini-zh&tier=standard")
    assert "At least 1 job matches" in preview
    assert "Cancel ≥ 1 job that has not ended?" in preview
    assert "2 jobs were cancelled." in visit.act("/jobs/matching/cancel?model=mini-zh", **given(preview)).text
    assert story.job(old).state == "cancelled"


def test_a_bulk_action_that_one_request_cannot_finish_continues_by_itself(
    visit: Visit, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.services.bulk.MAX_JOBS", 1)
    monkeypatch.setattr("common.queue.bulk.STEP_JOBS", 1)
    jobs = [story.submit() for _ in range(2)]

    def carry_on(action: str, answer: str) -> str:
        sent = html.unescape(find(r'hx-trigger="load"[^>]*hx-vals="([^"]+)"', answer))
        return visit.act(f"/jobs/matching/{action}", **dict(re.findall(r'"(\w+)": "?([^",}]+)', sent))).text

    first = visit.act("/jobs/matching/cancel", **given(visit.page("/jobs/matching"))).text
    assert [story.job(job).state for job in jobs] == ["cancelled", "queued"]
    assert "2 jobs were cancelled." in carry_on("cancel", first)
    assert [story.job(job).state for job in jobs] == ["cancelled", "cancelled"]

    preview = given(visit.page("/jobs/matching"))
    for result in ("2 jobs were submitted again.", "2 were retried before"):
        assert result in carry_on("retry", visit.act("/jobs/matching/retry", **preview).text)


def test_a_job_shows_why_it_waits_and_its_actions(visit: Visit, story: Story) -> None:
    job = story.submit(prompt="一只猫", steps=7, count=2, seed=41)
    page = visit.page(f"/jobs/{job}", "zh")
    assert "没有工作进程服务此模型" in page
    assert all(word in page for word in ("一只猫", "<dt>步数</dt><dd>7</dd>", "41, 42", "还没有工作进程领取它"))
    assert "--seed=41 --image-format=png --tier=standard -- '一只猫'" in html.unescape(page)
    assert "$HUAFANG_KEY" in page

    assert "interactive now" in visit.act(f"/jobs/{job}/tier", tier="interactive").text
    assert story.job(job).tier == "interactive"
    assert visit.act(f"/jobs/{job}/retry").status_code == 409
    assert "is cancelled" in visit.act(f"/jobs/{job}/cancel").text
    assert story.job(job).state == "cancelled"

    again = find(r'href="/dashboard/jobs/([^"]+)"', visit.act(f"/jobs/{job}/retry").text)
    assert story.job(UUID(again)).parent_id == job
    assert again in visit.page(f"/jobs/{job}")
    assert str(job) in visit.page(f"/jobs/{again}")


@pytest.mark.parametrize(
    ("code", "remedy"), [("nan_image", "Change scheduler, guidance or seed"), ("never_seen", "Unknown error code")]
)
def test_a_failure_comes_with_its_remedy(visit: Visit, story: Story, code: str, remedy: str) -> None:
    job = story.submit()
    fail(story, code, "It went wrong.")
    page = visit.page(f"/jobs/{job}")
    assert remedy in page
    assert "It went wrong." in page
    assert "published" in page  # the timeline
    with visit.browser.stream("GET", f"/dashboard/live/jobs/{job}") as stream:
        assert next(line for line in stream.iter_lines() if remedy in line)


def test_a_viewer_changes_nothing_and_another_tenant_sees_nothing(api: Api, visit: Visit, story: Story) -> None:
    job = story.submit()
    actions = [f"/jobs/{job}/cancel", f"/jobs/{job}/retry", "/jobs/matching/cancel", "/new", "/new/model"]
    with visiting(api, scopes=[Scope.VIEWER]) as viewer:
        for path in ("/jobs", f"/jobs/{job}", "/new", "/jobs/matching"):
            assert "hx-post" not in viewer.page(path)
        fields = {"prompt": "圆", "model": "mini-zh", "until": "2030-01-01T00:00:00Z"}
        assert {viewer.act(action, **fields).status_code for action in actions} == {403}
    assert {visit.act(action, token="forged", until="2030-01-01T00:00:00Z").status_code for action in actions} == {403}
    with visiting(api, "somebody else") as stranger:
        assert rows(stranger.page("/jobs")) == []
        for path in (f"/jobs/{job}", f"/new?from={job}"):
            assert stranger.page(path, status=404)
        assert stranger.act(f"/jobs/{job}/cancel").status_code == 404
    assert story.job(job).state == "queued"


def idempotency_key(page: str) -> str:
    return find(r'name="idempotency_key" value="([^"]+)"', page)


def test_a_form_makes_one_job_however_often_it_is_sent(visit: Visit, story: Story) -> None:
    fields = {"prompt": "红色的圆形\r\n和月亮", "model": "mini-zh", "steps": "3", "count": "2", "seed": "5"}
    fields |= {
        "width": "",
        "negative_prompt": "",
        "format": "webp",
        "tier": "bulk",
        "idempotency_key": idempotency_key(visit.page("/new")),
    }
    answers = [visit.act("/new", **fields) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    (job,) = {find(r'data-live="/dashboard/live/jobs/([^"]+)"', answer.text) for answer in answers}
    made = story.job(UUID(job))
    assert (story.count("jobs"), made.tier, made.recipe["seeds"], made.recipe["format"]) == (1, "bulk", [5, 6], "webp")
    assert (made.recipe["prompt"], made.recipe["width"]) == ("红色的圆形\n和月亮", 128)
    assert idempotency_key(answers[0].text) != fields["idempotency_key"]


def test_an_error_is_shown_beside_its_field(visit: Visit, story: Story) -> None:
    fields = {"prompt": "圆", "model": "mini-zh", "width": "100", "steps": "many", "seed": "1, -2"}
    answer = visit.act("/new", "zh", **fields)
    assert answer.status_code == 422
    for field in ("steps", "seed"):
        assert re.search(rf'id="{field}"[^>]*aria-invalid="true" aria-describedby="{field}-error"', answer.text)
    assert "must be a whole number" in answer.text
    answer = visit.act("/new", "zh", **fields | {"steps": "2", "seed": "1, 2"})
    assert "is 100; it must be divisible by 8" in answer.text
    assert 'value="1, 2"' in answer.text
    answer = visit.act("/new", "zh", prompt="圆" * 300, model="mini-zh")
    assert "提示词的词元数超出此模型的上限" in answer.text
    assert story.count("jobs") == 0


def test_a_form_asks_for_what_the_model_reads(visit: Visit) -> None:
    forms = {name: visit.act("/new/model", model=name).text for name in ("z-image", "z-image-turbo")}
    asked, by_turbo = (set(re.findall(r'name="(\w+)"', form)) for form in forms.values())
    assert asked - by_turbo == {"negative_prompt", "guidance"}
    assert forms["z-image"].count('step="16"') == 2
    assert re.findall(r'<option value="(flow_\w+|ddim)"', forms["z-image"]) == ["flow_euler"]


def test_a_licence_is_accepted_with_the_first_job(visit: Visit, story: Story) -> None:
    form = visit.act("/new/model", prompt="一只猫", model="zh-v0", shown_model="mini-zh").text
    assert "has not accepted this licence" in form
    assert ">\n一只猫</textarea>" in form
    version = find(r'name="accepted" value="([^"]+)"', form)
    refused = visit.act("/new", prompt="一只猫", model="zh-v0", idempotency_key="a")
    assert (refused.status_code, story.count("jobs")) == (422, 0)
    assert "has not been accepted yet" in refused.text
    assert visit.act("/new", prompt="一只猫", model="zh-v0", accepted=version, idempotency_key="b").status_code == 201
    assert visit.act("/new", prompt="一只猫", model="zh-v0", idempotency_key="c").status_code == 201


def test_a_clone_has_the_whole_recipe(visit: Visit, story: Story) -> None:
    job = story.submit(
        prompt="一只猫", negative_prompt="水印", seeds=[9, 4], guidance=3.5, scheduler="lms", tier=Tier.BULK
    )
    page = visit.page(f"/new?from={job}")
    for shown in (">\n一只猫</textarea>", ">\n水印</textarea>", 'value="9, 4"', 'value="3.5"'):
        assert shown in page
    for chosen in ('value="lms" selected', 'value="bulk" selected'):
        assert chosen in page
    assert 'value="an image"' in visit.page("/new?source=an image")


def test_a_style_is_chosen_shown_and_cloned_as_it_was_written(visit: Visit, story: Story) -> None:
    assert '<option value="ink">ink</option>' in visit.page("/new")
    fields = {"prompt": "红色的圆形", "model": "mini-zh", "style": "photo", "negative_prompt": "水印"}
    answer = visit.act("/new", **fields, idempotency_key="a")
    assert answer.status_code == 201, answer.text
    job = find(r'data-live="/dashboard/live/jobs/([^"]+)"', answer.text)
    recipe = story.job(UUID(job)).recipe
    assert (recipe["prompt"], recipe["negative_prompt"]) == ("红色的圆形, 摄影, 自然光, 高清", "水印, 插画, 油画")
    page = visit.page(f"/jobs/{job}", "zh")
    assert "<dt>风格</dt><dd>photo</dd>" in page
    assert '<dt>原始提示词</dt><dd lang="zh" class="text">红色的圆形</dd>' in page
    command = html.unescape(page)
    assert "--style=photo" in command
    assert "--negative='水印' " in command
    clone = visit.page(f"/new?from={job}")
    for shown in (">\n红色的圆形</textarea>", ">\n水印</textarea>", 'value="photo" selected'):
        assert shown in clone
    unknown = visit.act("/new", **fields | {"style": "gone"}, idempotency_key="b")
    assert unknown.status_code == 422
    assert re.search(r'id="style"[^>]*aria-invalid="true"', unknown.text)
    assert 'value="gone" selected' in unknown.text

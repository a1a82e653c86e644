"""The keys of objects in storage: whose image an object is, and that what others have put there is nobody's."""

from uuid import UUID

import pytest

from common.storage import dataset_key, image_key, owner_of_image, upload_key

JOB, LEASE = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize("index", [0, 7, 63])
def test_the_key_of_an_image_says_whose_it_is(index: int) -> None:
    assert owner_of_image(image_key(JOB, index, LEASE, "png")) == (JOB, index)


@pytest.mark.parametrize(
    "key",
    [
        upload_key(JOB, "png"),
        dataset_key(JOB, "0-1.png"),
        "images/trial",
        f"images/{JOB}/",
        f"images/{JOB}/-1-{LEASE}.png",
        f"images/{JOB}/99999999999-{LEASE}.png",
        f"images/somebody/0-{LEASE}.png",
        "",
    ],
)
def test_another_key_is_of_no_image(key: str) -> None:
    assert owner_of_image(key) is None

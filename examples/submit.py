"""Submit a prompt, wait for its pictures, save them: `python examples/submit.py [PROMPT [COUNT]]`. Needs httpx.

HUAFANG_URL and HUAFANG_KEY are the address of the farm and an API key.
"""

import hashlib
import os
import sys
import time
import uuid

import httpx

farm = httpx.Client(
    base_url=os.environ["HUAFANG_URL"],
    headers={"Authorization": f"Bearer {os.environ['HUAFANG_KEY']}"},
    timeout=30,
    follow_redirects=True,  # to the image store
)


def main(prompt: str = "红色的圆形", count: str = "1") -> None:
    job = submit({"prompt": prompt, "count": int(count)})
    for warning in job["warnings"]:
        print(warning, file=sys.stderr)
    while job["state"] in ("queued", "running"):
        time.sleep(0.3)
        job = farm.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    for image in job["images"]:
        if image["state"] == "stored":
            print(save(image))
        else:
            print(f"picture {image['index']} is {image['state']}: {image['error']}", file=sys.stderr)


def submit(recipe: dict) -> dict:
    """With the same Idempotency-Key, a retry after a lost answer makes no second job."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    for pause in (0.5, 1, 2, 4):
        try:
            answer = farm.post("/v1/jobs", json=recipe, headers=headers)
        except httpx.TransportError:
            time.sleep(pause)
            continue
        if answer.status_code == 503:  # a service of the farm does not answer
            time.sleep(pause)
            continue
        if answer.is_error:
            sys.exit(answer.json()["detail"])  # one sentence, with the field's name
        return answer.json()
    sys.exit("The farm does not answer.")


def save(image: dict) -> str:
    data = farm.get(f"/v1/images/{image['id']}/content").raise_for_status().content
    assert hashlib.sha256(data).hexdigest() == image["sha256"]
    name = f"{image['id']}.{image['format']}"
    with open(name, "wb") as file:
        file.write(data)
    return name


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The Redis client copied into another project under another name, with nothing but hiredis beside it."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import waterspout_redis
from waterspout_redis.testing import RunningServer

PROGRAM = """
import asyncio, sys
from project._redis import Client, ClientPool, Gap, Pipeline, PubSubClient, PubSubMessage, Script

async def main(url):
    asyncio.get_running_loop().slow_callback_duration = 60  # on a busy machine everything is slow
    async with Client(url, decode="utf-8") as client, PubSubClient(url) as pubsub, ClientPool(url) as pool:
        await client.call("SET", "vendored", "yes")
        transaction = Pipeline(atomic=True)
        transaction.stack_call("GET", "vendored")
        print(await client.call(transaction))
        print(await Script("return ARGV[1]")(client, args=["from a script"]))
        async with pool.connected_client() as mine:
            print(await mine.call("BLPOP", "nothing", 0.01))
        await pubsub.subscribe("vendored")
        await client.call("PUBLISH", "vendored", "a message")
        async for item in pubsub:
            print(item)
            break

asyncio.run(main(sys.argv[1]))
others = {name.partition(".")[0] for name in sys.modules} & {"waterspout_redis", "redis", "tornado"}
assert not others, others
"""


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without what is not needed"])
def test_the_copied_folder_works_under_another_name(redis_server: RunningServer, tmp_path: Path, whole: bool) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "__init__.py").touch()
    copied = shutil.copytree(Path(waterspout_redis.__file__).parent, project / "_redis")
    program = PROGRAM
    if whole:
        program = "import project._redis.testing, project._redis.tornadis\n" + program
    else:
        # What the recipe in the package's README says may go.
        shutil.rmtree(copied / "testing")
        shutil.rmtree(copied / "tornadis")
        (copied / "commands.py").unlink()
    hiredis = find_spec("hiredis")
    assert hiredis is not None
    assert hiredis.origin is not None
    # -S: without what is installed; only hiredis is put where it can be found.
    (tmp_path / "hiredis").symlink_to(Path(hiredis.origin).parent)
    (tmp_path / "program.py").write_text(program)
    answer = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-X", "dev", str(tmp_path / "program.py"), redis_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": ""},
        cwd=tmp_path,
    )
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == [
        "['yes']",
        "from a script",
        "None",
        "PubSubMessage(channel=b'vendored', data=b'a message', pattern=None)",
    ]

"""A strict Hugging Face Hub on 127.0.0.1 for the unmodified client, read and written.

It answers the routes that huggingface_hub 2.4 calls for a model: accounts, repositories, trees,
downloads, LFS uploads, commits, branches and pull requests, with the real Hub's status codes and
headers as far as the client looks at them: an unknown repository is 401 to strangers and 404 to
those who have a token, since its existence is nobody's business. Bytes are kept on disk and
compared by SHA-256; every commit stays, so that a test can look at each state that the Hub ever
showed. There is no Xet: the client must be told so with ``HF_HUB_DISABLE_XET=1``, since it does not
ask the Hub::

    with serve(tmp_path / "hub") as hub:
        hub.put("org/name", {"config.json": b"{}"})
        hub.fail("commit", status=503, headers={"Retry-After": "0"})
        subprocess.run([...], env=os.environ | hub.environment(WRITER))
"""

from hubserver.faults import Fault
from hubserver.server import Hub, serve
from hubserver.store import PLAIN, READER, SECRETS, STRANGER, UNKNOWN, WRITER, Repo, Store
from hubserver.worker import Worker, environment, python, worker

__all__ = [
    "PLAIN", "READER", "SECRETS", "STRANGER", "UNKNOWN", "WRITER", "Fault", "Hub", "Repo", "Store",
    "Worker", "environment", "python", "serve", "worker",
]  # fmt: skip

"""The loopback hub: what it serves is whole, whatever its size."""

import urllib.request

import pytest

from course_tools.rehearsal.hub_server import serve_hub


def test_files_come_whole_and_a_changed_one_has_another_tag(tmp_path):
    content = bytes(range(256)) * 20_000  # more than one piece
    (tmp_path / "model.safetensors").write_bytes(content)

    def fetch(address, method):
        request = urllib.request.Request(f"{address}/some/model/resolve/main/model.safetensors", method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.headers["ETag"], int(answer.headers["Content-Length"]), answer.read()

    with serve_hub({"some/model": tmp_path}) as address:
        tag, size, nothing = fetch(address, "HEAD")
        assert (size, nothing) == (len(content), b"")
        assert fetch(address, "GET") == (tag, len(content), content)
        (tmp_path / "model.safetensors").write_bytes(content[:-1])
        assert fetch(address, "HEAD")[0] != tag
        with pytest.raises(urllib.error.HTTPError, match="404|401"):
            urllib.request.urlopen(f"{address}/api/models/other/model")

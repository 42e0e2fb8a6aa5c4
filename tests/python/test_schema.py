"""The HTTP API against its OpenAPI description, with generated requests: no response is a server error, and all
responses conform to the description."""

import os
import subprocess
import sys

from hub import token

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_every_response_conforms_to_the_description(hub_with):
    hub = hub_with(
        connects_per_second_per_address=0,
        database_url="sqlite://accounts.db",
        logins_per_minute_per_address=0,
        logins_per_minute_per_account=0,
    )
    # These are tested separately: the first may revoke the token of the test, and the second may drain the node, whose
    # name is in other responses.
    apart = ["/tokens/revoke", "/nodes/{node}/drain"]
    for path, wanted in [(None, 10), *((path, 10) for path in apart)]:
        others = [option for other in ["/ws", *apart] for option in ("--exclude-path", other)]
        only = ["--include-path", path] if path else others
        run = subprocess.run(
            [
                os.path.join(os.path.dirname(sys.executable), "schemathesis"),
                "run",
                f"http://{hub.address}/openapi.json",
                f"--checks={CHECKS}",
                "--phases=examples,coverage,fuzzing",
                f"--max-examples={wanted}",
                "--seed=1",
                "--no-color",
                *only,
                "-H",
                f"Authorization: Bearer {token('root', admin=True)}",
            ],
            # The tool writes files to the working directory.
            cwd=hub.directory,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stdout[-6000:]
        assert "cases" in run.stdout and " 0 generated" not in run.stdout, run.stdout[-2000:]

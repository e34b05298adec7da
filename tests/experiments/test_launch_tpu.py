"""Cloud TPU machines: the request, the start-up script, and a service that fails in every way such services do."""

import json
import os
import re
import subprocess

import pytest

from experiments.cli import main
from experiments.launch.tpu import Tier, Tpu

TRAIN = ("train", "--data.text", "/mnt/a b.txt")
SETTINGS = {"project": "p", "zone": "us-east5-a", "accelerator": "v5litepod-16", "name": "law", "image": "image:1"}


def node_of(request):
    (spec,) = request["queuedResource"]["tpu"]["nodeSpec"]
    return spec["node"]


def test_the_request_of_one_slice():
    request = Tpu(**SETTINGS).request(TRAIN)
    assert request["parent"] == "projects/p/locations/us-east5-a"
    assert request["queuedResourceId"] == "law"
    assert request["queuedResource"]["spot"] == {}
    (spec,) = request["queuedResource"]["tpu"]["nodeSpec"]
    assert spec["nodeId"] == "law"
    assert "multisliceParams" not in spec
    assert node_of(request)["acceleratorType"] == "v5litepod-16"
    assert node_of(request)["runtimeVersion"] == "v2-alpha-tpuv5-lite"
    assert node_of(request)["metadata"]["enable-guest-attributes"] == "TRUE"


def test_the_request_of_slices_and_tiers():
    request = Tpu(**SETTINGS | {"slices": 2, "tier": Tier.RESERVED, "service_account": "a@b"}).request(TRAIN)
    (spec,) = request["queuedResource"]["tpu"]["nodeSpec"]
    assert spec["multisliceParams"] == {"nodeCount": 2, "nodeIdPrefix": "law"}
    assert "nodeId" not in spec
    assert request["queuedResource"]["guaranteed"] == {}
    assert spec["node"]["schedulingConfig"] == {"reserved": True}
    assert spec["node"]["serviceAccount"]["email"] == "a@b"
    request = Tpu(**SETTINGS | {"tier": Tier.ON_DEMAND}).request(TRAIN)
    assert not {"spot", "guaranteed"} & request["queuedResource"].keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accelerator": "v5-16"}, "written as v5p-128"),
        ({"accelerator": "v5p"}, "written as v5p-128"),
        ({"slices": 0}, "one slice at least"),
        ({"name": "My Run"}, "'My Run' is no name for machines"),
        ({"image": ""}, "machines start bare"),
    ],
)
def test_mistakes(changes, said):
    with pytest.raises(ValueError, match=said):
        Tpu(**SETTINGS | changes)


def test_dry_run_shows_request_and_script_and_asks_nobody(capsys):
    flags = ["--project", "p", "--zone", "z", "--accelerator", "v5p-128", "--slices", "2", "--setup", "mount it"]
    assert main(["launch", "tpu", *flags, "--dry-run", "--", *TRAIN]) == 0
    shown = capsys.readouterr().out
    request, end = json.JSONDecoder().raw_decode(shown)
    script = node_of(request)["metadata"]["startup-script"]
    assert script in shown[end:]
    assert "\nmount it\nscaling train --data.text '/mnt/a b.txt'\n" in script


@pytest.mark.parametrize(
    ("setup", "status", "before", "told"),
    [
        ("true", 0, "", {"status": "0", "words": "trained --steps 3"}),
        ("true", 3, "", {"status": "3", "words": "trained --steps 3"}),
        ("no-such-program", 0, "", {"status": "127", "words": "no-such-program: command not found"}),
        ("true", 0, "0", {}),
        ("true", 0, "130", {"status": "0", "words": "trained --steps 3"}),
    ],
)
def test_the_script_tells_how_the_command_ended(tmp_path, setup, status, before, told):
    """Run by bash, with a stand-in for the command and for the machine's metadata server."""
    (tmp_path / "status").write_text(before)
    programs = {
        "scaling": f'echo "trained ${{@:2}}"\nexit {status}\n',
        # The last argument is the address; with -X it stores what it reads.
        "curl": f'at={tmp_path}/$(basename "${{@: -1}}")\nif [[ $* == *-X* ]]; then cat > $at.told; else cat $at; fi\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    script = Tpu(**SETTINGS | {"image": "", "setup": (setup,)}).script(("train", "--steps", "3"))
    script = script.replace("/var/log/scaling.log", str(tmp_path / "log"))
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash"], input=script, text=True, env=environment, check=False, capture_output=True)
    found = {path.stem: path.read_text().strip() for path in tmp_path.glob("*.told")}
    assert found.keys() == told.keys()
    assert all(found[name].endswith(words) for name, words in told.items())


def test_in_a_container():
    assert "\ndocker run --rm --privileged --net host -v /mnt:/mnt image:1 scaling train " in Tpu(**SETTINGS).script(
        TRAIN
    )


# ---------------------------------------------------------------------------------------------------------------------
# A service on loopback


@pytest.fixture
def service():
    pytest.importorskip("google.cloud.tpu_v2", reason="google-cloud-tpu is not installed (extra gcp)")
    from tpu_service import TpuService

    return TpuService


def launched(service, *, tpu=None, command=TRAIN):
    """The status, and what was said."""
    said = []
    tpu = tpu or Tpu(**SETTINGS)
    with service.client() as client:
        return tpu.launch(command, client=client, say=said.append, every=0.01, patience=5.0), said


def states(*names):
    from tpu_service import State

    return [State[name] for name in names]


QUEUED = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
WELL = [{"status": "0"}, {"status": "0"}]


def test_asked_for_watched_and_given_back(service):
    service = service([states(*QUEUED)])
    looks = iter([None, [{"status": "0"}], [{"status": "0"}, {"status": "130"}]])
    service.told["law"] = lambda: next(looks, WELL)
    status, said = launched(service)
    assert status == 0
    assert service.resources == {}
    assert [line.partition(": ")[2] for line in said[1:]] == [name.lower().replace("_", " ") for name in QUEUED]
    (request,) = service.requests
    assert request.queued_resource.tpu.node_spec[0].node.metadata["startup-script"] == Tpu(**SETTINGS).script(TRAIN)
    assert "spot" in request.queued_resource


def test_both_slices_must_end(service):
    service = service([states("ACTIVE")])
    looks = iter([None, None, WELL])
    service.told = {"law-0": WELL, "law-1": lambda: next(looks)}
    assert launched(service, tpu=Tpu(**SETTINGS | {"slices": 2}))[0] == 0
    assert service.calls.count("GetGuestAttributes") == 6
    assert service.requests[0].queued_resource.tpu.node_spec[0].multislice_params.node_count == 2


def test_a_command_that_fails_is_told_and_ends_all(service):
    service = service([states("ACTIVE")])
    service.told["law"] = [{"status": "0"}, {"status": "3", "words": "loss is nan\n"}]
    status, said = launched(service)
    assert status == 3
    assert said[-2:] == ["law: ended with status 3; its last words:", "loss is nan"]
    assert service.resources == {}


def test_taken_away_and_asked_for_again(service):
    service = service([states("ACTIVE", "SUSPENDING"), states("ACTIVE", "SUSPENDED"), states(*QUEUED)])
    looks = iter([[{"status": "143"}, {"status": "130"}], None])  # asked to stop, as its machine was taken away
    service.told["law"] = lambda: next(looks, WELL)
    status, said = launched(service)
    assert status == 0
    assert [line for line in said if "taken away" in line] == [
        "law: taken away; asking again (1 of 10 times)",
        "law: taken away; asking again (2 of 10 times)",
    ]
    assert service.calls.count("DeleteQueuedResource") == 3
    assert len({request.queued_resource_id for request in service.requests}) == 1


@pytest.mark.parametrize("status", ["203", "134", "137"])
def test_what_may_pass_is_tried_again(service, status):
    """On machines that are still there; a status from before the second look that is for good counts more."""
    service = service([states("ACTIVE"), states("ACTIVE")])
    looks = iter([[{"status": status}, {}]] * 2)
    service.told["law"] = lambda: next(looks, WELL)
    ended, said = launched(service)
    assert ended == 0
    assert f"law: ended with status {status}, which may pass; asking again (1 of 10 times)" in said
    assert service.calls.count("DeleteQueuedResource") == 2


def test_what_one_says_for_good_counts_more_than_that_others_lost_it(service):
    service = service([states("ACTIVE")])
    looks = iter([[{"status": "203"}, {}]])
    service.told["law"] = lambda: next(looks, [{"status": "203"}, {"status": "1", "words": "loss is nan"}])
    status, said = launched(service)
    assert status == 1
    assert said[-1] == "loss is nan"


def test_taken_away_too_often(service):
    service = service([states("SUSPENDED")] * 3)
    with pytest.raises(OSError, match="lost 3 times, which is as often as --restarts allows, the last time taken away"):
        launched(service, tpu=Tpu(**SETTINGS | {"restarts": 2}))
    assert service.resources == {}


@pytest.mark.parametrize("method", ["CreateQueuedResource", "GetQueuedResource", "GetNode", "DeleteQueuedResource"])
def test_a_service_that_is_away_for_a_while(service, method):
    import grpc

    service = service([states("ACTIVE")])
    service.told["law"] = WELL
    service.faults[method] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
    assert launched(service)[0] == 0
    assert service.calls.count(method) == 3


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("RESOURCE_EXHAUSTED", "no quota: CreateQueuedResource is not for you"),
        ("PERMISSION_DENIED", "PermissionDenied: CreateQueuedResource is not for you"),
        ("INVALID_ARGUMENT", "InvalidArgument: CreateQueuedResource"),
    ],
)
def test_what_is_refused_is_told_in_a_line(service, code, said):
    import grpc

    service = service([states("ACTIVE")])
    service.faults["CreateQueuedResource"] = [grpc.StatusCode[code]]
    with pytest.raises(OSError, match=re.escape(said)):
        launched(service)


def test_a_service_that_stays_away(service):
    import grpc

    service = service([states("ACTIVE")])
    service.faults["GetQueuedResource"] = [grpc.StatusCode.UNAVAILABLE] * 10_000
    said = []
    with service.client() as client, pytest.raises(OSError, match="the service does not answer"):
        Tpu(**SETTINGS).launch(TRAIN, client=client, say=said.append, every=0.01, patience=0.3)


def test_a_request_that_fails_or_is_deleted(service):
    failing = service([states("CREATING", "FAILED")])
    failing.failure = "no such zone"
    with pytest.raises(OSError, match="law failed: no such zone"):
        launched(failing)
    assert failing.resources == {}
    with pytest.raises(OSError, match="deleted, by somebody else"):
        launched(service([states("ACTIVE", "DELETING")]))


def test_the_same_command_again_watches_again(service):
    service = service([states("ACTIVE")])
    service.told["law"] = WELL
    with service.client() as client:
        tpu = Tpu(**SETTINGS)
        from experiments.launch.tpu import _message

        client.create_queued_resource(request=_message(tpu.request(TRAIN)))
        with pytest.raises(ValueError, match="law runs another command; choose another --name, or end it: gcloud"):
            tpu.launch(("train", "--seed", "1"), client=client, say=print, every=0.01)
        said = []
        assert tpu.launch(TRAIN, client=client, say=said.append, every=0.01) == 0
    assert said[0] == "law: is there already, with this command"


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "google.cloud.tpu_v2", None)
    flags = ["--project", "p", "--zone", "z", "--accelerator", "v5p-128", "--image", "i"]
    assert main(["launch", "tpu", *flags, "--", "train"]) == 1
    assert "pip install 'scaling-experiments[gcp]'" in capsys.readouterr().err

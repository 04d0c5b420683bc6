"""The whole `cluster.yaml`, placeholders filled in, against a cloud of the lab's hosts."""

import csv
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from cloud import BUCKET, KEY_NAME, PROFILES
from lab import REPO, SHARED, Lab, wait_for
from ray_cluster import CLONE, SMALL_STORE, RayCluster, fill_in, finish, is_trained, steady

pytestmark = pytest.mark.timeout(600)

NETWORK = "10.77.0.0/24"
WORKERS = ["w1", "w2", "w3", "w4"]
# The cloud assigns a subnet's addresses from the fourth on.
HOSTS = {name: f"10.77.0.{number}" for number, name in enumerate(["head", *WORKERS], start=4)}
ENDPOINT = "http://10.77.0.1:5000"
CLOUD_ENV = {
    "AWS_ENDPOINT_URL": ENDPOINT,
    "AWS_ACCESS_KEY_ID": "lab",
    "AWS_SECRET_ACCESS_KEY": "lab",
    "AWS_DEFAULT_REGION": "us-west-2",
}
CLOUD = f"python {SHARED}/cloud.py"
FILE = f"{CLONE}/lab-aws.yaml"


class Cloud:
    """The cloud as the driver's host sees it, and the hosts that follow its instances."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.driver = lab.driver
        self.driver.env |= CLOUD_ENV
        shutil.copy(REPO / "tests" / "cluster" / "cloud.py", lab.share)
        self.driver.start(f"exec {CLOUD} serve {self.driver.ip} >/tmp/moto.log 2>&1")
        wait_for(lambda: self.driver.succeeds(f"curl -s {ENDPOINT}/moto-api/"), 60, "the cloud")
        self.ids: dict[str, str] = json.loads(
            self.driver.run(f"{CLOUD} make {NETWORK} ~/.ssh/authorized_keys")
        )
        self.driver.run(f"cp ~/.ssh/lab.pem ~/.ssh/{KEY_NAME}.pem")

    def running(self) -> list[dict[str, Any]]:
        return json.loads(self.driver.run(f"{CLOUD} running"))

    def terminate(self, ip: str) -> None:
        (instance,) = [i["InstanceId"] for i in self.running() if i["PrivateIpAddress"] == ip]
        self.driver.run(f"{CLOUD} terminate {instance}")

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Shut down each host whose instance is terminated."""
        self.driver.start(f"exec {CLOUD} follow {SHARED}/running.json")
        over = threading.Event()
        thread = threading.Thread(target=self._follow, args=[over])
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _follow(self, over: threading.Event) -> None:
        file, seen = self.lab.share / "running.json", set()
        while not over.wait(0.5):
            ips = set(json.loads(file.read_text())) if file.exists() else set()
            seen |= ips
            for host in self.lab.hosts.values():
                if host.is_on and host.ip in seen - ips:
                    host.shut_down()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    lab = Lab(tmp_path_factory.mktemp("lab"), HOSTS, with_code=["driver", "head"])
    with lab.opened():
        cloud = Cloud(lab)
        with cloud.followed():
            yield cloud


def cluster_file(ids: dict[str, str]) -> str:
    text = fill_in(
        "cluster.yaml",
        {
            "ami-YOUR-IMAGE": ids["image"],
            "sg-YOUR-GROUP": ids["group"],
            "YOUR-HEAD-PROFILE": PROFILES[0],
            "YOUR-WORKER-PROFILE": PROFILES[1],
            "s3://YOUR-BUCKET": f"s3://{BUCKET}",
            "RAY_AUTH_MODE=token\n": "RAY_AUTH_MODE=token\n    "
            + " ".join(f"{name}={value}" for name, value in CLOUD_ENV.items())
            + "\n",
            "ray start --head": f"ray start --head {SMALL_STORE}",
            "ray start --address": f"ray start {SMALL_STORE} --num-cpus=4 --num-gpus=1 --address",
            "idle_timeout_minutes: 5": "idle_timeout_minutes: 0.5",
        },
    )
    file = yaml.safe_load(text)
    file["provider"]["use_internal_ips"] = True
    file["auth"]["ssh_user"] = "root"
    for node_type in file["available_node_types"].values():
        node_type["node_config"]["SubnetIds"] = [ids["subnet"]]
    return yaml.safe_dump(file, sort_keys=False)


def test_aws_scales_and_survives(cloud: Cloud) -> None:
    """From no workers to two, through the loss of a spot instance, and back to none."""
    lab = cloud.lab
    text = cluster_file(cloud.ids)
    cluster = RayCluster(lab, text)
    (lab.share / "clone" / "lab-aws.yaml").write_text(text)

    doctor = f"tune-jobs doctor {FILE} --aws"
    assert "no problems found" in cloud.driver.run(doctor)

    cluster.up()
    cluster.wait_for_nodes("head")
    (head,) = cloud.running()
    check_instance(head, cloud.ids, PROFILES[0])
    assert not cluster.nodes()["head"].get("CPU")

    job = cluster.submit(f"{steady('aws', 6, 12)} --cpus-per-trial 2 --max-concurrent 4")
    wait_for(lambda: len(cloud.running()) == 3, 60, "two workers")
    cluster.wait_for_nodes("head", "w1", "w2")
    spots = [i for i in cloud.running() if i["InstanceId"] != head["InstanceId"]]
    for spot in spots:
        check_instance(spot, cloud.ids, PROFILES[1])
        assert spot["InstanceLifecycle"] == "spot"
    wait_for(lambda: is_trained(lab, "aws", "w1", 3), 90, "trials on w1")
    cloud.terminate(lab["w1"].ip)
    output = finish(job)
    assert "4 at a time, each on 2 CPU and 0.25 of a GPU" in output
    assert "0 of 4 GPUs; the autoscaler is starting gpu_spot" in output
    assert f"Node w1 ({lab['w1'].ip}) has left: 1 of 4 GPUs; the autoscaler is starting" in output
    rows = cluster.on_head(
        "python -c 'import pyarrow.fs as fs; f, p = fs.FileSystem.from_uri(\"s3://"
        f"{BUCKET}/sweeps/aws/trials.csv\"); print(f.open_input_stream(p).read().decode())'"
    )
    states = [row["state"] for row in csv.DictReader(rows.splitlines())]
    assert states == ["COMPLETE"] * 6

    wait_for(lambda: len(cloud.running()) == 1, 120, "idle workers end")
    cloud.driver.run(f"{CLOUD} open {cloud.ids['group']}")
    output = cloud.driver.run(f"{doctor}; echo code $?")
    assert "0.0.0.0/0" in output
    assert "code 2" in output

    cluster.close_tunnel()
    cluster.down()
    assert cloud.running() == []


def check_instance(instance: dict[str, Any], ids: dict[str, str], profile: str) -> None:
    assert [group["GroupId"] for group in instance["SecurityGroups"]] == [ids["group"]]
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
    assert instance["ImageId"] == ids["image"]

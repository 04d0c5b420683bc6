"""A cloud of the lab's hosts: moto answers for EC2, IAM and S3, and power follows the instances.

Run on the driver's host with `serve`, it is the cloud; with `make`, it makes what a user of AWS has
before `ray up`; with `follow` it writes down, for ever, which instances run.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import moto.server
from moto.ec2.responses.instances import InstanceResponse

REGION = "us-west-2"
KEY_NAME = "ray-autoscaler_us-west-2"  # as Ray would name and make it
PROFILES = ("tune-head", "tune-worker")
BUCKET = "tune-lab"
SSH_FROM = "203.0.113.0/24"


def serve(host: str) -> None:
    """Answer as AWS does: moto itself starts MinCount instances instead of MaxCount, and gives only
    the first one its profile."""
    run_instances = InstanceResponse.run_instances

    def run_most(self: InstanceResponse) -> Any:
        self.params["MinCount"] = self.params["MaxCount"]
        answer = run_instances(self)
        profile = self.params["IamInstanceProfile"]["Name"]
        for instance in answer.result.instances[1:]:
            self.ec2_backend.associate_iam_instance_profile(
                instance_id=instance.id, iam_instance_profile_name=profile
            )
        return answer

    InstanceResponse.run_instances = run_most
    moto.server.main(["-H", host, "-p", "5000"])


def make(network: str, public_key: str) -> dict[str, Any]:
    """A subnet, a security group, an image, profiles and a bucket; returns their ids."""
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
    vpc = ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=network)["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="tune", Description="tune", VpcId=vpc)["GroupId"]
    allow(group, {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]})
    allow(group, ssh_from(SSH_FROM))
    ec2.import_key_pair(KeyName=KEY_NAME, PublicKeyMaterial=public_key.encode())
    for name in PROFILES:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    place = {"LocationConstraint": REGION}
    boto3.client("s3", REGION).create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    return {"subnet": subnet, "group": group, "image": image}


def allow(group: str, permission: dict[str, Any]) -> None:
    ec2 = boto3.client("ec2", REGION)
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])


def ssh_from(cidr: str) -> dict[str, Any]:
    return {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": cidr}]}


def running() -> list[dict[str, Any]]:
    """The instances that run, as EC2 describes them."""
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    pages = boto3.client("ec2", REGION).describe_instances(Filters=states)["Reservations"]
    return [instance for page in pages for instance in page["Instances"]]


def follow(file: Path) -> None:
    draft = file.with_suffix(".draft")
    while True:
        draft.write_text(json.dumps([i["PrivateIpAddress"] for i in running()]))
        draft.replace(file)
        time.sleep(0.5)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", host]:
            serve(host)
        case ["make", network, key_file]:
            print(json.dumps(make(network, Path(key_file).read_text())))
        case ["follow", file]:
            follow(Path(file))
        case ["running"]:
            print(json.dumps(running(), default=str))
        case ["open", group]:
            allow(group, ssh_from("0.0.0.0/0"))
        case ["terminate", instance]:
            boto3.client("ec2", REGION).terminate_instances(InstanceIds=[instance])

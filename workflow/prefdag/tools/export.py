"""`prefdag export RUN`: a policy as a folder that `from_pretrained` loads, with a model card; `--push` to the Hub."""

import argparse
from pathlib import Path

from prefdag.errors import UserError
from prefdag.export import export, manifest_of, push, suite_folder


def main(argv: list[str]) -> int:
    """Write the folder; nothing goes to the Hub unless `--push` says where. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="prefdag export", description=__doc__)
    parser.add_argument("run", help="a run's name, <run>@step<N> for a kept checkpoint, or sft")
    parser.add_argument("--results", type=Path, help="results/<suite>; left out: the one that has the run")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="the new folder (exports/<suite>/<run>)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="a pushed repository that is new is public")
    given = parser.parse_args(argv)
    if given.public and not given.push:
        raise UserError("--public: says nothing without --push OWNER/NAME")
    manifest = manifest_of(given.run, given.results)
    suite = suite_folder(manifest).resolve().name
    target = export(manifest, given.run, given.to or Path("exports") / suite / given.run)
    print(f"{target}: load it with AutoModelForCausalLM.from_pretrained({str(target)!r})")
    if given.push:
        print(f"pushed to {push(target, given.push, given.public)}")
    return 0

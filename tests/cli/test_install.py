"""What `meson install` puts where; that manual pages and completions say what the program takes."""
import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.environ["COWNBD_SOURCE"], "tests/nbd"))
from wire import main  # noqa: E402

PREFIX = "usr/local"


def run(*command, **how):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, **how)
    assert result.returncode == 0, result
    return result.stdout


def installed():
    """The tree of an installation, made once."""
    if not hasattr(installed, "top"):
        installed.keep = tempfile.TemporaryDirectory()
        run("meson", "install", "-C", os.environ["COWNBD_BUILD"], "--no-rebuild", "--destdir", installed.keep.name)
        installed.top = os.path.join(installed.keep.name, PREFIX)
    return installed.top


def commands():
    lines = [json.loads(line) for line in run(os.environ["COWNBD"], "--describe").splitlines()]
    return [{**brief, **command} for brief, command in zip(lines[::2], lines[1::2])]


def page_text(name):
    section = name.rsplit(".", 1)[1]
    path = os.path.join(installed(), f"share/man/man{section}", name)
    text = run("man", "--warnings", "-l", path, env=dict(os.environ, LC_ALL="C.UTF-8", MANWIDTH="1000", MAN_KEEP_FORMATTING=""))
    return re.sub(r".\x08|\x1b\[[0-9;]*m", "", text)


def test_everything_is_in_its_place():
    top = installed()
    for path in ("bin/cownbd", "lib/systemd/system/cownbd.service", "lib/systemd/system/cownbd.socket",
                 "lib/systemd/system/cownbd-attach@.service", "share/man/man1/cownbd.1", "share/man/man5/cownbd.conf.5",
                 "share/bash-completion/completions/cownbd.bash", "share/zsh/vendor-completions/_cownbd",
                 "share/fish/vendor_completions.d/cownbd.fish", "share/doc/cownbd/operations.md"):
        assert os.path.isfile(os.path.join(top, path)), path
    with open(os.path.join(top, "lib/systemd/system/cownbd.service")) as unit:
        assert f"ExecStart=/{PREFIX}/bin/cownbd serve" in unit.read()
    said = run(os.path.join(top, "bin/cownbd"), "--version")
    assert said.startswith("cownbd ")


def test_a_page_for_each_command_with_each_option_of_its_help():
    said = run(os.environ["COWNBD"], "--help")
    listed = re.findall(r"(?m)^  (\S+) +\S", said.split("Commands:")[1].split("Example:")[0])
    described = commands()
    assert listed == [command["command"] for command in described]
    overview = page_text("cownbd.1")
    for command in described:
        name = command["command"]
        assert f"cownbd-{name}(1)" in overview
        page, shown = page_text(f"cownbd-{name}.1"), run(os.environ["COWNBD"], name, "--help")
        in_help = set(re.findall(r"(?m)^  (?:-\w, )?--([a-z][a-z-]*)", shown)) - {"help"}
        in_page = set(re.findall(r"(?m)^ +(?:-\w(?: \S+)?, )?--([a-z][a-z-]*)", page.split("OPTIONS")[-1].split("EXAMPLES")[0])) \
            if "OPTIONS" in page else set()
        assert in_help == in_page, (name, in_help ^ in_page)


def test_the_page_of_the_configuration_has_each_setting():
    page = page_text("cownbd.conf.5")
    for setting in ("listen", "allow-paths", "threads", "status", "log", "log-level", "sandbox", "user", "tls"):
        assert re.search(rf"(?m)^ +{setting}=", page), setting


def completed(*words):
    """What bash offers for the last word."""
    script = os.path.join(installed(), "share/bash-completion/completions/cownbd.bash")
    text = """compopt() { :; }; source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cownbd
              printf '%s\\n' "${COMPREPLY[@]}\""""
    return run("bash", "-c", text, script, "cownbd", *words).split()


def test_completions():
    top = installed()
    assert completed("ser") == ["serve"]
    assert {"serve", "info", "help"} <= set(completed(""))
    assert completed("serve", "--log-l") == ["--log-level="]
    assert completed("serve", "--log-level", "=", "w") == ["warning"]
    assert completed("serve", "--tls", "r") == ["require"]
    assert completed("convert", "--output-format", "vh") == ["vhd", "vhdx"]
    assert completed("ctl", "re") == ["remove", "reload", "resize"]
    assert completed("ctl", "remove", "--mode", "h") == ["hide", "hard"]
    assert completed("config", "") == ["check"] and completed("snapshot", "d") == ["delete"]
    assert set(completed("serve", "--")) == {f"--{option['name']}" + ("=" if option["argument"] else "")
                                             for command in commands() if command["command"] == "serve"
                                             for option in command["options"]} | {"--help"}
    run("zsh", "-n", os.path.join(top, "share/zsh/vendor-completions/_cownbd"))
    fish = os.path.join(top, "share/fish/vendor_completions.d/cownbd.fish")
    with tempfile.TemporaryDirectory() as home:
        for words, wanted in (("serve --log-", "--log-level"), ("serve --tls r", "require"), ("ctl re", "reload"),
                              ("convert --output-format vhd", "vhdx")):
            offered = run("fish", "--no-config", "-c", f"source {fish}; complete -C 'cownbd {words}'",
                          env=dict(os.environ, HOME=home, XDG_CONFIG_HOME=home, XDG_DATA_HOME=home))
            assert wanted in offered, offered


if __name__ == "__main__":
    main(sys.modules[__name__])

"""The Debian packages, made of what is built already: debian/ with the installation of this build in place of its own.

`dpkg-buildpackage` would compile everything once more. What it does after that, this does.
"""
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.environ["COWNBD_SOURCE"], "tests/nbd"))
from wire import main  # noqa: E402

STEPS = (["dh_install"], ["dh_installdocs"], ["dh_installchangelogs"], ["dh_installsystemd", "--no-enable", "--no-start"],
         ["dh_compress"], ["dh_fixperms"], ["dh_shlibdeps"], ["dh_installdeb"], ["dh_gencontrol"], ["dh_md5sums"],
         ["dh_builddeb"])


def run(*command, **how):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, **how)
    assert result.returncode == 0, result
    return result.stdout


def made():
    """The directory of the packages, made once."""
    if not hasattr(made, "top"):
        made.keep = tempfile.TemporaryDirectory()
        tree = os.path.join(made.keep.name, "tree")
        shutil.copytree(os.path.join(os.environ["COWNBD_SOURCE"], "debian"), os.path.join(tree, "debian"),
                        ignore=shutil.ignore_patterns("tmp", "cownbd", "cownbd-xen", ".debhelper"))
        staged = os.path.join(tree, "debian/tmp")
        run("dh_prep", cwd=tree)
        run("meson", "install", "-C", os.environ["COWNBD_BUILD"], "--no-rebuild", "--destdir", staged)
        for name in os.listdir(os.path.join(staged, "usr/local")):
            os.rename(os.path.join(staged, "usr/local", name), os.path.join(staged, "usr", name))
        for step in STEPS:
            run(*step, cwd=tree)
        made.top = made.keep.name
    return made.top


def package(name):
    found = [file for file in os.listdir(made()) if file.startswith(name + "_") and file.endswith(".deb")]
    assert len(found) == 1, found
    return os.path.join(made(), found[0])


def contents(name):
    return {line.split()[5].removeprefix("."): line.split()[:2]
            for line in run("dpkg-deb", "-c", package(name)).splitlines()}


def test_what_is_in_the_packages():
    files = contents("cownbd")
    for path in ("/usr/bin/cownbd", "/lib/systemd/system/cownbd.service", "/lib/systemd/system/cownbd.socket",
                 "/usr/share/man/man1/cownbd-serve.1.gz", "/usr/share/man/man5/cownbd.conf.5.gz",
                 "/usr/share/bash-completion/completions/cownbd.bash", "/usr/share/doc/cownbd/copyright"):
        assert path in files, path
    assert all(owner == "root/root" for _, owner in files.values())
    assert not any(path.startswith("/usr/local/") for path in files)
    assert contents("cownbd-xen")["/etc/xen/scripts/block-cownbd"] == ["-rwxr-xr-x", "root/root"]


def test_what_they_depend_on():
    depends = run("dpkg-deb", "-f", package("cownbd"), "Depends")
    for library in ("libc6", "libevent", "libseccomp2", "libgnutls30", "libsystemd0"):
        assert library in depends, depends
    assert "cownbd" in run("dpkg-deb", "-f", package("cownbd-xen"), "Depends")
    scripts = run("dpkg-deb", "-I", package("cownbd"))
    assert "postinst" in scripts, "systemd is not told of new units"


def test_lintian_finds_no_error():
    # That the program is not stripped and not hardened is so of this build, not of dpkg-buildpackage's.
    run("lintian", "--allow-root", "--fail-on", "error", "--suppress-tags",
        "unstripped-binary-or-object,embedded-library,debug-file-with-no-debug-symbols,custom-library-search-path",
        package("cownbd"), package("cownbd-xen"))


if __name__ == "__main__":
    main(sys.modules[__name__])

"""Certificates and keys for tests, made by certtool in a directory laid out as servers and clients want it."""
import os
import subprocess

VALID = ("2020-01-01 00:00:00", "2060-01-01 00:00:00")
EXPIRED = ("2020-01-01 00:00:00", "2021-01-01 00:00:00")
NOT_YET = ("2059-01-01 00:00:00", "2060-01-01 00:00:00")

AUTHORITY = ("ca", "cert_signing_key", "crl_signing_key")
SERVER = ("signing_key", "tls_www_server", 'dns_name = "localhost"', 'ip_address = "127.0.0.1"')
CLIENT = ("signing_key", "tls_www_client")


def certtool(*arguments):
    subprocess.run(["certtool", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Authority:
    """Its own certificate and key, and those that it signs, as files of directory."""

    def __init__(self, directory, name="Test Authority"):
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self.serial = 0
        self.certificate, self.key = self.path("ca-cert.pem"), self.path("ca-key.pem")
        certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", self.key)
        self.make(self.certificate, self.key, f'cn = "{name}"', AUTHORITY, VALID, "--generate-self-signed")

    def path(self, name):
        return os.path.join(self.directory, name)

    def make(self, certificate, key, name, purpose, dates, how, *more):
        self.serial += 1
        template = self.path("template")
        with open(template, "w") as out:
            out.write("\n".join((name, f"serial = {self.serial}", f'activation_date = "{dates[0]}"',
                                 f'expiration_date = "{dates[1]}"', *purpose)) + "\n")
        certtool(how, "--load-privkey", key, "--template", template, "--outfile", certificate, *more)

    def sign(self, who, purpose=CLIENT, dates=VALID, name=None):
        """WHO-cert.pem and WHO-key.pem. Returns their paths."""
        certificate, key = self.path(f"{who}-cert.pem"), self.path(f"{who}-key.pem")
        certtool("--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", key)
        self.make(certificate, key, name or f'cn = "{who}"\norganization = "Example"', purpose, dates,
                  "--generate-certificate", "--load-ca-privkey", self.key, "--load-ca-certificate",
                  self.certificate)
        return certificate, key

    def revoke(self, certificate):
        """ca-crl.pem: a list of this one."""
        template = self.path("template")
        with open(template, "w") as out:
            out.write('crl_this_update_date = "2020-01-01 00:00:00"\ncrl_next_update_date = "2060-01-01 00:00:00"\n'
                      f'crl_number = 1\nrevocation_date = "2020-01-01 00:00:00"\n')
        certtool("--generate-crl", "--load-ca-privkey", self.key, "--load-ca-certificate", self.certificate,
                 "--load-certificate", certificate, "--template", template, "--outfile", self.path("ca-crl.pem"))


def write_keys(path, **users):
    with open(path, "w") as out:
        for user, key in users.items():
            out.write(f"{user}:{key}\n")

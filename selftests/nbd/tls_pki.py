# SPDX-License-Identifier: GPL-2.0-only
"""Certificates and shared keys for the tests of TLS, made with certtool."""
import os
import shutil
import subprocess
import tempfile

AUTHORITY = "ca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 10\n"
SERVER = ("dns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n"
          "expiration_days = 10\n")
CLIENT = "tls_www_client\nsigning_key\n"
VALID = "expiration_days = 10\n"
EXPIRED = ('activation_date = "2001-01-01 00:00:00 UTC"\n'
           'expiration_date = "2002-01-01 00:00:00 UTC"\n')
USER, KEY = "alice", "0123456789abcdef" * 4


def certtool(*arguments):
    """Run certtool; what it says matters only when it fails."""
    subprocess.run(["certtool", *arguments], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)


class Pki:
    """Directories in the form that QEMU and libnbd use: server, and one for each client."""

    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="fleeced-pki-")
        os.chmod(self.root, 0o755)
        for name in ("authority", "other"):
            self.make_authority(name)
        self.make("server", "server", "cn = localhost\n" + SERVER)
        for name in ("backup", "stranger", "withdrawn"):
            self.make(name, "client", "cn = %s\no = Example Ltd\n" % name + CLIENT + VALID)
        self.make("expired", "client", "cn = backup\n" + CLIENT + EXPIRED)
        self.make("forged", "client", "cn = backup\n" + CLIENT + VALID, authority="other")
        self.make("misused", "client", "cn = backup\n" + SERVER)
        for name, other in (("twofold", "stranger"), ("longer", "x" * 400)):
            self.make(name, "client", 'dn = "cn=%s,cn=backup"\n' % other + CLIENT + VALID)
            self.make(name + "-too", "client", 'dn = "cn=backup,cn=%s"\n' % other + CLIENT + VALID)
        self.make("masked", "client", 'cn = "CN=stranger"\n' + CLIENT + VALID)
        self.keys = self.write("psk/keys.psk", "bob:%s\n%s:%s\n" % ("ab" * 32, USER, KEY), 0o600)

    def path(self, *parts):
        """A file below the root."""
        return os.path.join(self.root, *parts)

    def write(self, name, text, mode=0o644):
        """Write a file, return its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def make_key(self, name):
        """A private key."""
        certtool("--generate-privkey", "--key-type", "ecdsa", "--outfile", self.path(name))
        os.chmod(self.path(name), 0o600)

    def make_authority(self, name):
        """A certificate that others are signed with."""
        template = self.write(name + "/template", "cn = %s\n" % name + AUTHORITY)
        self.make_key(name + "/key.pem")
        certtool("--generate-self-signed", "--load-privkey", self.path(name, "key.pem"),
                 "--template", template, "--outfile", self.path(name, "cert.pem"))

    def make(self, name, side, text, authority="authority"):
        """The directory of a server or client."""
        template = self.write(name + "/template", text)
        self.make_key("%s/%s-key.pem" % (name, side))
        certtool("--generate-certificate", "--load-privkey", self.path(name, side + "-key.pem"),
                 "--load-ca-certificate", self.path(authority, "cert.pem"),
                 "--load-ca-privkey", self.path(authority, "key.pem"),
                 "--template", template, "--outfile", self.path(name, side + "-cert.pem"))
        shutil.copy(self.path("authority", "cert.pem"), self.path(name, "ca-cert.pem"))

    def server(self, name, **files):
        """A copy of the server's directory, with more files; its path."""
        shutil.copytree(self.path("server"), self.path(name))
        for file, text in files.items():
            self.write("%s/%s" % (name, file.replace("_", "-")), text)
        return self.path(name)

    def withdraw(self, directory, client):
        """Give a server the list of withdrawn certificates, with this client's."""
        template = self.write("crl-template", "crl_next_update = 10\ncrl_number = 1\n")
        certtool("--generate-crl", "--load-ca-privkey", self.path("authority", "key.pem"),
                 "--load-ca-certificate", self.path("authority", "cert.pem"),
                 "--load-certificate", self.path(client, "client-cert.pem"),
                 "--template", template, "--outfile", os.path.join(directory, "ca-crl.pem"))

    def remove(self):
        """Remove all of it."""
        shutil.rmtree(self.root)

"""One key and one certificate for both ends of a connection, by which they recognise each other.

For processes that get the two over a channel that they already trust. Nothing of it is ever on a disk.
"""

import datetime
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def tls_context(protocol: int, credentials: str) -> ssl.SSLContext:
    """Trusts the one certificate alone, and shows it."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is what was agreed on
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials[credentials.index("-----BEGIN CERTIFICATE") :])
    # `ssl` reads keys from files alone; from pipes they touch no disk, which may be full.
    with _in_a_pipe(credentials) as certificate_path, _in_a_pipe(credentials) as key_path:
        context.load_cert_chain(certificate_path, key_path)
    return context


@contextmanager
def _in_a_pipe(text: str) -> Iterator[str]:
    """A path at which the text, some kilobytes at most, can be read once."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text.encode())
        os.close(writer)
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)


def new_credentials() -> str:
    """A key and a certificate for it, as PEM. It outlives any process, which is all that ends it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "serve_app side stream")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=365))  # clocks differ between nodes
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (private + certificate.public_bytes(serialization.Encoding.PEM)).decode()

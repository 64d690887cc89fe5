//! TLS 1.3 between devices that know each other's keys.
//!
//! There is no authority and no name: a device is the SHA-256 of its public key. Whoever dials expects
//! exactly one device; whoever is dialled lets in the configured peers. Both sides still check the handshake
//! signature, which proves that the other holds the key, and accept Ed25519 only. Nothing is resumed and
//! nothing is sent early, so every connection passes these checks. The cryptography is always ring's, passed
//! explicitly: the process default belongs to the application.
//!
//! A verifier lives for one handshake and remembers whom it turned away, since TLS itself tells the caller
//! no more than "access denied".

use std::sync::{Arc, OnceLock};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use tidelog::id::DeviceId;

use crate::{
    identity::{Identity, device_of_spki},
    peers::Peers,
};

/// What the two ends agree to speak inside TLS.
pub(crate) const ALPN: &[u8] = b"tidelog";

/// For dialling the one device that `verifier` expects.
pub(crate) fn client_config(
    identity: &Identity,
    verifier: Arc<ExpectedDevice>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate()], identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For being dialled by the devices that `verifier` lets in.
pub(crate) fn server_config(identity: &Identity, verifier: Arc<KnownDevices>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&verifier.provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The device that a certificate speaks for. That its owner holds the key is for the handshake to prove.
pub(crate) fn device_of_certificate(certificate: &CertificateDer<'_>) -> Result<DeviceId, Error> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(device_of_spki(&parsed.subject_public_key_info()))
}

/// On the dialling side: lets in exactly one device.
#[derive(Debug)]
pub(crate) struct ExpectedDevice {
    provider: Arc<CryptoProvider>,
    device: DeviceId,
    turned_away: OnceLock<DeviceId>,
}

impl ExpectedDevice {
    pub(crate) fn new(provider: Arc<CryptoProvider>, device: DeviceId) -> Self {
        Self { provider, device, turned_away: OnceLock::new() }
    }

    /// The device that answered in place of the expected one. Its signature was not checked.
    pub(crate) fn turned_away(&self) -> Option<DeviceId> {
        self.turned_away.get().copied()
    }
}

impl ServerCertVerifier for ExpectedDevice {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let device = device_of_certificate(end_entity)?;
        if device == self.device {
            return Ok(ServerCertVerified::assertion());
        }
        Err(turn_away(&self.turned_away, device))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// On the side that is dialled: lets in the configured peers, as they are at that moment.
#[derive(Debug)]
pub(crate) struct KnownDevices {
    provider: Arc<CryptoProvider>,
    peers: Arc<Peers>,
    turned_away: OnceLock<DeviceId>,
}

impl KnownDevices {
    pub(crate) fn new(provider: Arc<CryptoProvider>, peers: Arc<Peers>) -> Self {
        Self { provider, peers, turned_away: OnceLock::new() }
    }

    /// The device that asked and is no peer. Its signature was not checked.
    pub(crate) fn turned_away(&self) -> Option<DeviceId> {
        self.turned_away.get().copied()
    }
}

impl ClientCertVerifier for KnownDevices {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let device = device_of_certificate(end_entity)?;
        if self.peers.contain(device) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(turn_away(&self.turned_away, device))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Remembers the device and gives the error that becomes the TLS alert `access_denied`.
fn turn_away(memory: &OnceLock<DeviceId>, device: DeviceId) -> Error {
    memory.get_or_init(|| device);
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let algorithms = &provider.signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_a_certificate_is_that_of_its_key() {
        let identity = Identity::generate().unwrap();
        assert_eq!(device_of_certificate(&identity.certificate()), Ok(identity.device_id()));
    }

    #[test]
    fn damaged_certificates_are_errors_or_other_devices() {
        let identity = Identity::generate().unwrap();
        let good = identity.certificate().to_vec();
        for length in 0..good.len() {
            let cut = CertificateDer::from(good[..length].to_vec());
            assert!(device_of_certificate(&cut).is_err(), "cut to {length} bytes");
        }
        for position in 0..good.len() {
            let mut flipped = good.clone();
            flipped[position] ^= 0x40;
            // The id covers the key; what else the certificate says is not looked at. Only: never a panic.
            let _ = device_of_certificate(&CertificateDer::from(flipped));
        }
    }
}

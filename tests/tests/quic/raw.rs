//! A peer that need not keep the rules: a plain quinn endpoint with a key, and none of the transport's code.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tidelog::id::{DeviceId, LibraryId};
use tidelog_transport::{Identity, Quic};

use crate::{LOOPBACK, soon};

pub(crate) const COMPLETE: u8 = 1;
pub(crate) const MORE: u8 = 2;

pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32 + 1).to_be_bytes()[..], &[kind], payload].concat()
}

pub(crate) fn preface(library: LibraryId) -> Vec<u8> {
    frame(3, &[&b"TIDE"[..], &[0, 1, 0, 1], library.0.as_bytes()].concat())
}

pub(crate) struct Raw {
    pub(crate) device: DeviceId,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    protocol: Vec<u8>,
    endpoint: quinn::Endpoint,
}

/// A channel that the transport has accepted.
pub(crate) struct RawChannel {
    pub(crate) connection: quinn::Connection,
    pub(crate) send: quinn::SendStream,
    pub(crate) receive: quinn::RecvStream,
    kept: Option<Raw>,
}

impl RawChannel {
    /// Lets the client live as long as the channel.
    pub(crate) fn keep(&mut self, raw: Raw) {
        self.kept = Some(raw);
    }
}

impl Raw {
    pub(crate) fn new() -> Self {
        Self::speaking(b"tidelog")
    }

    pub(crate) fn speaking(protocol: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        let device = Identity::load_or_create(&path).unwrap().device_id();
        let pkcs8 = PrivatePkcs8KeyDer::from(std::fs::read(&path).unwrap());
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap().der().clone();
        let endpoint = quinn::Endpoint::client(LOOPBACK).unwrap();
        Self { device, certificate, key: pkcs8.into(), protocol: protocol.to_vec(), endpoint }
    }

    pub(crate) fn with_certificate_of(self, other: &Raw) -> Self {
        Self { certificate: other.certificate.clone(), ..self }
    }

    pub(crate) async fn connect(&self, to: &Quic) -> Result<quinn::Connection, quinn::ConnectionError> {
        let address = to.local_addr().unwrap();
        soon("a raw connection", self.endpoint.connect_with(self.config(), address, "tidelog").unwrap()).await
    }

    /// Dials so many times and does not care what comes of it.
    pub(crate) fn begin_handshakes(&self, address: SocketAddr, count: usize) {
        for _ in 0..count {
            tokio::spawn(self.endpoint.connect_with(self.config(), address, "tidelog").unwrap());
        }
    }

    /// A channel on a connection of its own.
    pub(crate) async fn channel(&self, to: &Quic, library: LibraryId) -> RawChannel {
        self.channel_on(&self.connect(to).await.unwrap(), library).await
    }

    /// Opens a channel as the rules say, and leaves the rest to the test.
    pub(crate) async fn channel_on(&self, connection: &quinn::Connection, library: LibraryId) -> RawChannel {
        let (mut send, mut receive) = soon("a stream", connection.open_bi()).await.unwrap();
        send.write_all(&preface(library)).await.unwrap();
        let mut answer = [0; 7];
        soon("an answer", receive.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, [0, 0, 0, 3, 4, 0, 1], "accepted, version 1");
        RawChannel { connection: connection.clone(), send, receive, kept: None }
    }

    /// Lets anybody connect; the address to dial.
    pub(crate) fn serve(&self) -> SocketAddr {
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.shows()));
        tls.alpn_protocols = vec![self.protocol.clone()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        self.endpoint.set_server_config(Some(quinn::ServerConfig::with_crypto(Arc::new(tls))));
        let endpoint = self.endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                drop(incoming.await);
            }
        });
        self.endpoint.local_addr().unwrap()
    }

    /// Not by rustls's short ways, which check that key and certificate belong together.
    fn shows(&self) -> Shows {
        let key = provider().key_provider.load_private_key(self.key.clone_key()).unwrap();
        Shows(Arc::new(CertifiedKey::new(vec![self.certificate.clone()], key)))
    }

    fn config(&self) -> quinn::ClientConfig {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustsAnybody))
            .with_client_cert_resolver(Arc::new(self.shows()));
        tls.alpn_protocols = vec![self.protocol.clone()];
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        quinn::ClientConfig::new(Arc::new(tls))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct TrustsAnybody;

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("QUIC has TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

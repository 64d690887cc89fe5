//! Who this device is: an Ed25519 key in a file, its certificate, and the device id made from it.
//!
//! The key file is PKCS#8 (DER). It appears under its name whole or not at all, only its owner may read it,
//! and a file that is there is never written again: a damaged one is an error, because a silent new key
//! would be a new device that nobody knows. The certificate is made afresh at each start; peers look at its
//! key only, so it carries no names and no dates that matter. Rights are checked on Unix; elsewhere the file
//! has those of its directory.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tidelog::id::DeviceId;

use crate::limits::KEY_FILE_MAX;

/// The name in every certificate and in every dial. It says nothing: a device is its key.
pub(crate) const SERVER_NAME: &str = "tidelog";

/// This device's key pair and certificate.
///
/// ```
/// use tidelog_transport::Identity;
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("device.key");
/// let first = Identity::load_or_create(&path)?;
/// let again = Identity::load_or_create(&path)?;
/// assert_eq!(first.device_id(), again.device_id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Identity {
    device: DeviceId,
    certificate: CertificateDer<'static>,
    pkcs8: Vec<u8>,
}

impl Identity {
    /// Reads the key file at `path`, or creates it (and not its directory) when nothing is there.
    ///
    /// Of several processes that create it at once, one does and all return its key.
    ///
    /// # Errors
    /// [`IdentityError`]. An existing file is left as it is in every case.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let path = path.as_ref();
        if let Some(identity) = Self::load(path)? {
            return Ok(identity);
        }
        let fresh = generate_key().map_err(|source| IdentityError::create(path, io::Error::other(source)))?;
        if create(path, fresh.serialized_der()).map_err(|source| IdentityError::create(path, source))? {
            return Self::of(&fresh).map_err(|error| IdentityError::create(path, io::Error::other(error)));
        }
        Self::load(path)?.ok_or_else(|| IdentityError::create(path, io::ErrorKind::NotFound.into()))
    }

    /// A new identity that is in no file: for tests, and for devices that live as long as their process.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn generate() -> Result<Self, IdentityError> {
        generate_key()
            .and_then(|key| Self::of(&key))
            .map_err(|error| IdentityError::Generate(error.to_string()))
    }

    /// What the world knows this device by: SHA-256 of the public key's SPKI.
    pub fn device_id(&self) -> DeviceId {
        self.device
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.clone()).into()
    }

    /// 32 secret bytes for one purpose, the same at each start, from which the key cannot be found.
    pub(crate) fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"tidelog derived secret\0");
        hash.update(purpose.as_bytes());
        hash.update([0]);
        hash.update(&self.pkcs8);
        hash.finalize().into()
    }

    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let bytes = match read(path) {
            Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        let damaged = |reason: String| IdentityError::Damaged { path: path.into(), reason };
        let der = PrivatePkcs8KeyDer::from(bytes.as_slice());
        // ring alone checks that the two halves of the pair belong together and that both are there.
        ring::signature::Ed25519KeyPair::from_pkcs8(&bytes).map_err(|error| damaged(error.to_string()))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
            .map_err(|error| damaged(error.to_string()))?;
        Self::of(&key).map(Some).map_err(|error| damaged(error.to_string()))
    }

    fn of(key: &KeyPair) -> Result<Self, rcgen::Error> {
        let certificate = CertificateParams::new([SERVER_NAME.to_owned()])?.self_signed(key)?;
        Ok(Self {
            device: device_of_spki(&key.subject_public_key_info()),
            certificate: certificate.der().clone(),
            pkcs8: key.serialized_der().to_vec(),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("device", &self.device).finish_non_exhaustive()
    }
}

/// The device whose public key this is: SHA-256 over the DER of its SPKI.
pub(crate) fn device_of_spki(spki: &[u8]) -> DeviceId {
    DeviceId(Sha256::digest(spki).into())
}

/// Why there is no identity. No file was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key file is there and cannot be read.
    #[error("the device key {} cannot be read: {source}; nothing was changed; make it a file that this user can read", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no key file and none could be made.
    #[error("the device key {} cannot be created: {source}; nothing was left behind; name a file in an existing directory where this user can write", path.display())]
    Create {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file holds no whole Ed25519 key.
    #[error("the device key {} is damaged ({reason}); it was left as it is; restore it from a backup, or move it away to become a new device that every peer has to add again", path.display())]
    Damaged {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Others than the owner may read or write the key file.
    #[error("the device key {path} is open to other users (mode {mode:04o}); it was not used and not changed; run: chmod 600 {path}", path = path.display())]
    OpenToOthers {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No key could be generated.
    #[error("no device key can be generated: {0}; nothing was changed; try again")]
    Generate(String),
}

impl IdentityError {
    fn create(path: &Path, source: io::Error) -> Self {
        Self::Create { path: path.into(), source }
    }
}

fn generate_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ED25519)
}

/// The bytes of the key file, once its rights are in order. All checks are on the opened file.
fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |source| IdentityError::Read { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    check_rights(path, &metadata)?;
    let mut bytes = Vec::new();
    file.take(KEY_FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > KEY_FILE_MAX {
        let reason = format!("it has more than {KEY_FILE_MAX} bytes");
        return Err(IdentityError::Damaged { path: path.into(), reason });
    }
    Ok(bytes)
}

#[cfg(unix)]
fn check_rights(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;

    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::OpenToOthers { path: path.into(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_rights(_: &Path, _: &fs::Metadata) -> Result<(), IdentityError> {
    Ok(())
}

/// Puts `bytes` at `path` unless something is there; whether it did. Durable when it returns.
fn create(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".device-key-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error),
    }
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_key_stays_the_same_and_is_the_only_file() {
        let folder = folder();
        let path = folder.path().join("device.key");
        let created = Identity::load_or_create(&path).unwrap();
        let loaded = Identity::load_or_create(&path).unwrap();
        assert_eq!(created.device_id(), loaded.device_id());
        assert_eq!(names(folder.path()), ["device.key"]);
        assert_ne!(created.device_id(), Identity::generate().unwrap().device_id());
    }

    #[test]
    fn concurrent_creators_end_with_one_key() {
        let folder = folder();
        let path = folder.path().join("device.key");
        for _ in 0..20 {
            let start = std::sync::Barrier::new(8);
            let devices: Vec<DeviceId> = std::thread::scope(|scope| {
                let creators: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            Identity::load_or_create(&path).unwrap().device_id()
                        })
                    })
                    .collect();
                creators.into_iter().map(|creator| creator.join().unwrap()).collect()
            });
            let in_file = Identity::load_or_create(&path).unwrap().device_id();
            assert!(devices.iter().all(|device| *device == in_file), "{devices:?}");
            assert_eq!(names(folder.path()), ["device.key"]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_as_it_is() {
        let folder = folder();
        let path = folder.path().join("device.key");
        Identity::load_or_create(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> = vec![vec![], good[..good.len() - 1].to_vec(), vec![0; 5000]];
        for bit in 0..8 * good.len() {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            damaged.push(flipped);
        }
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let error = match Identity::load_or_create(&path) {
                Ok(identity) => panic!("{bytes:?} was read as {identity:?}"),
                Err(error) => error.to_string(),
            };
            for part in [path.to_str().unwrap(), "damaged (", "left as it is", "restore it from a backup"] {
                assert!(error.contains(part), "{part:?} is missing in: {error}");
            }
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_key_file_is_private_and_must_stay_so() {
        use std::os::unix::fs::PermissionsExt;

        let folder = folder();
        let path = folder.path().join("device.key");
        let device = Identity::load_or_create(&path).unwrap().device_id();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o600);
        for open in [0o640, 0o604, 0o620, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err().to_string();
            let shown = format!("mode {open:04o}");
            let command = format!("chmod 600 {}", path.display());
            for part in ["open to other users", &shown, "not used and not changed", &command] {
                assert!(error.contains(part), "{part:?} is missing in: {error}");
            }
            assert_eq!(mode(), open, "it is for the owner to change");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().device_id(), device);
    }

    #[test]
    fn what_cannot_be_read_or_created_says_so() {
        let folder = folder();
        let missing = folder.path().join("no/such/folder/device.key");
        let error = Identity::load_or_create(&missing).unwrap_err().to_string();
        for part in [missing.to_str().unwrap(), "cannot be created", "nothing was left", "existing directory"]
        {
            assert!(error.contains(part), "{part:?} is missing in: {error}");
        }
        let error = Identity::load_or_create(folder.path()).unwrap_err().to_string();
        for part in
            [folder.path().to_str().unwrap(), "cannot be read: it is not a file", "nothing was changed"]
        {
            assert!(error.contains(part), "{part:?} is missing in: {error}");
        }
    }

    #[test]
    fn the_secret_key_is_in_no_debug_output() {
        let identity = Identity::generate().unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity {{ device: {:?}, .. }}", identity.device_id()));
    }
}

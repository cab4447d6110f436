//! Certificates for tests: authorities, what they issue, and a folder for the files. The tests of the library use it
//! too.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate shall say.
#[derive(Clone)]
pub struct Leaf {
    names: Vec<String>,
    ends_in: i32,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Authority {
    /// The authority that calls itself `name`.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Its own certificate with its key, as nobody should show it.
    pub fn own(&self) -> Issued {
        Issued { cert: self.pem(), key: self.0.key().serialize_pem() }
    }

    /// Issues a certificate.
    pub fn issue(&self, leaf: &Leaf) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = leaf.names.iter().map(|name| san(name)).collect();
        params.distinguished_name.push(DnType::CommonName, leaf.names[0].as_str());
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(leaf.ends_in, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate").pem();
        Issued { cert, key: key.serialize_pem() }
    }

    /// Issues a certificate for these names.
    pub fn issue_for(&self, names: &[&str]) -> Issued {
        self.issue(&Leaf::of(names))
    }
}

impl Leaf {
    /// For these names: DNS names, addresses, URIs. The first is also its common name.
    pub fn of(names: &[&str]) -> Self {
        Self { names: names.iter().map(|name| (*name).to_owned()).collect(), ends_in: 2199 }
    }

    /// It ends on the first day of this year.
    #[must_use]
    pub fn ends_in(mut self, year: i32) -> Self {
        self.ends_in = year;
        self
    }

    /// It has expired, on the first day of 2021.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.ends_in = 2021;
        self
    }
}

fn san(name: &str) -> SanType {
    match name.parse() {
        Ok(ip) => SanType::IpAddress(ip),
        Err(_) if name.contains("://") => SanType::URI(name.try_into().expect("ASCII")),
        Err(_) => SanType::DnsName(name.try_into().expect("ASCII")),
    }
}

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("outrigger-tls-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Writes a file, in the place of another one of the same name; its path.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let (path, new) = (self.0.join(name), self.0.join(format!(".{name}.new")));
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, &path).expect("renamed");
        path.display().to_string()
    }

    /// Writes `NAME.pem` and `NAME-key.pem`; their paths.
    pub fn write_pair(&self, name: &str, issued: &Issued) -> (String, String) {
        (
            self.write(&format!("{name}.pem"), &issued.cert),
            self.write(&format!("{name}-key.pem"), &issued.key),
        )
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

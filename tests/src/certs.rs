//! Certificates for tests.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData,
    date_time_ymd,
};
use synddb_client::tls::{Identity, Pem, Pin};

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// With a key and a name of its own.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let name = Pin::of_public_key(&key.subject_public_key_info()).to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name, and its key.
    pub fn issue(&self, name: &str) -> Pair {
        self.issue_with(name, |_| {})
    }

    /// One that expired years ago.
    pub fn issue_expired(&self, name: &str) -> Pair {
        self.issue_with(name, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A certificate and its key, in PEM.
pub struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    /// One that signed itself.
    pub fn self_signed() -> Self {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let pair = pair.expect("a certificate");
        Self { certificate: pair.cert.pem(), key: pair.signing_key.serialize_pem() }
    }

    /// As it is.
    pub fn identity(&self) -> Identity {
        Identity {
            certificates: Pem::Text(self.certificate.clone()),
            key: Pem::Text(self.key.clone()),
        }
    }

    /// The pin of its key.
    pub fn pin(&self) -> Pin {
        self.identity().pin().expect("it was just made")
    }

    /// Writes `NAME.crt` and `NAME.key`.
    pub fn write(&self, dir: &Path, name: &str) {
        let Identity { certificates, key } = in_files(dir, name);
        for (place, text) in [(certificates, &self.certificate), (key, &self.key)] {
            let Pem::File(path) = place else { unreachable!("they are files") };
            std::fs::write(path, text).expect("the folder can be written");
        }
    }
}

/// What [`Pair::write`] writes.
pub fn in_files(dir: &Path, name: &str) -> Identity {
    Identity {
        certificates: Pem::File(dir.join(format!("{name}.crt"))),
        key: Pem::File(dir.join(format!("{name}.key"))),
    }
}

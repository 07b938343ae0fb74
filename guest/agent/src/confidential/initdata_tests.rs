use super::*;
use flate2::write::GzEncoder;
use flate2::Compression;
use std::io::Write;

const TEXT: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n\"aa.toml\" = \"x\"\n";

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn disk(gzip: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((gzip.len() as u64).to_le_bytes());
    bytes.extend(gzip);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).err().expect("an error").text
}

#[test]
fn an_initdata_is_read_and_its_digest_cut() {
    let initdata = read(disk(&gzip(TEXT.as_bytes())).as_slice()).unwrap();
    assert_eq!(initdata.policy(), Some("package agent_policy"));
    assert_eq!(initdata.text, TEXT);
    assert_eq!(initdata.digest[..], Sha384::digest(TEXT)[..32]);
}

#[test]
fn sha256_fills_the_digest() {
    let text = TEXT.replace("sha384", "sha256");
    let initdata = read(disk(&gzip(text.as_bytes())).as_slice()).unwrap();
    assert_eq!(initdata.digest[..], Sha256::digest(&text)[..]);
}

#[test]
fn a_damaged_disk_is_refused_with_what_is_wrong() {
    let whole = disk(&gzip(TEXT.as_bytes()));
    assert!(refused(&whole[..9]).contains("shorter than its head"));
    assert!(refused(&[b"initdatb", &whole[8..]].concat()).contains("the word initdata"));
    let length = gzip(TEXT.as_bytes()).len();
    assert!(refused(&whole[..16 + length - 1]).contains("the disk ends after"));
    assert!(refused(&disk(&gzip(TEXT.as_bytes())[..length - 9])).contains("damaged or cut"));
    assert!(refused(&disk(&[gzip(TEXT.as_bytes()), vec![1]].concat())).contains("behind its gzip"));
    let mut long = whole.clone();
    long[8..16].copy_from_slice(&(GZIP_BYTES_MAX + 1).to_le_bytes());
    assert!(refused(&long).contains("more than 1048576"));
    let mut flipped = gzip(TEXT.as_bytes());
    flipped[length - 6] ^= 1;
    assert!(refused(&disk(&flipped)).contains("damaged or cut"));
}

#[test]
fn unpacking_is_bounded() {
    let bomb = gzip(&vec![b'#'; 5 << 20]);
    assert!((bomb.len() as u64) < GZIP_BYTES_MAX);
    assert!(refused(&disk(&bomb)).contains("longer than 4194304"));
}

#[test]
fn a_wrong_document_is_refused_with_what_is_wrong() {
    for (from, to, expected) in [
        ("version", "versio", "version"),
        ("0.1.0", "0.2.0", "0.2.0"),
        ("sha384", "md5", "md5"),
        ("[data]", "[data", "no TOML"),
    ] {
        let text = TEXT.replacen(from, to, 1);
        let error = refused(&disk(&gzip(text.as_bytes())));
        assert!(error.contains(expected), "{error}");
    }
    assert!(refused(&disk(&gzip(b"\xff"))).contains("UTF-8"));
}

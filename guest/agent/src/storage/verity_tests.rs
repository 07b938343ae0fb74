use super::*;

fn hash() -> String {
    "0f".repeat(32)
}

fn options(more: &[&str]) -> Vec<String> {
    let root = format!("{PREFIX}roothash={}", hash());
    let first = [ENABLED, root.as_str(), "ro", "X-kata.overlay-lower"];
    first.iter().chain(more).map(|option| option.to_string()).collect()
}

#[test]
fn the_options_become_the_target_s_parameters() {
    let given = options(&[
        "X-kata.dmverity.hashoffset=40960",
        "X-kata.dmverity.no-superblock=true",
        "X-kata.dmverity.salt=00FF",
        "X-kata.dmverity.blocksize=4096",
        "X-kata.dmverity.hashsize=4096",
        "X-kata.dmverity.algorithm=sha256",
        "X-kata.dmverity.hashtype=1",
    ]);
    let verity = Verity::from_options(&given).unwrap().unwrap();
    let expected = format!("1 254:2 254:2 4096 4096 10 10 sha256 {} 00ff", hash());
    let place = Place {
        start: 10,
        blocks: 10,
        salt: verity.salt.clone(),
    };
    assert_eq!(verity.table("254:2", &place), expected);
}

#[test]
fn a_storage_without_verity_has_none() {
    assert_eq!(Verity::from_options(&["ro".to_string()]).unwrap(), None);
}

#[test]
fn options_that_would_weaken_the_check_are_refused() {
    let offset = "X-kata.dmverity.hashoffset=4096";
    for wrong in [
        vec![],
        vec!["X-kata.dmverity.hashoffset=0"],
        vec!["X-kata.dmverity.hashoffset=100"],
        vec![offset, "X-kata.dmverity.roothash=00"],
        vec![offset, "X-kata.dmverity.roothash="],
        vec![offset, "X-kata.dmverity.algorithm=crc32c"],
        vec![offset, "X-kata.dmverity.hashtype=2"],
        vec![offset, "X-kata.dmverity.blocksize=8192"],
        vec![offset, "X-kata.dmverity.salt=0"],
        vec![offset, "X-kata.dmverity.salt=00 1 ignore_corruption"],
        vec![offset, "X-kata.dmverity.ignore-corruption=true"],
    ] {
        assert!(Verity::from_options(&options(&wrong)).is_err(), "{wrong:?}");
    }
    let disabled: Vec<String> = options(&[offset])
        .into_iter()
        .filter(|option| option != ENABLED)
        .collect();
    assert!(Verity::from_options(&disabled).is_err());
}

#[test]
fn a_tree_has_the_blocks_that_veritysetup_makes() {
    let verity = Verity::from_options(&options(&["X-kata.dmverity.hashoffset=4096"]))
        .unwrap()
        .unwrap();
    for (data, tree) in [(1, 0), (2, 1), (128, 1), (129, 3), (16384, 129), (16385, 132)] {
        assert_eq!(verity.tree_blocks(data), Some(tree), "{data}");
    }
    assert!(verity.tree_blocks(u64::MAX).is_some());
}

fn superblock() -> [u8; SUPERBLOCK_BYTES] {
    let mut block = [0u8; SUPERBLOCK_BYTES];
    block[..8].copy_from_slice(SUPERBLOCK_SIGNATURE);
    block[8] = 1;
    block[12] = 1;
    block[32..38].copy_from_slice(ALGORITHM.as_bytes());
    block[65] = 0x10;
    block[69] = 0x10;
    block[72] = 9;
    block[80] = 2;
    block[88..90].copy_from_slice(&[0xab, 1]);
    block
}

#[test]
fn a_superblock_tells_the_tree_s_place() {
    let mut block = superblock();
    let told = read_superblock(&block).unwrap();
    assert_eq!((told.data_block, told.blocks, told.salt.as_str()), (4096, 9, "ab01"));
    block[80..82].copy_from_slice(&300u16.to_le_bytes());
    assert!(read_superblock(&block).is_none());
}

#[test]
fn a_superblock_agrees_with_the_options_and_its_salt_counts_where_they_have_none() {
    let path = std::env::temp_dir().join(format!("snp-agent-verity-{}", std::process::id()));
    let place = |block: &[u8], more: &[&str]| {
        std::fs::write(&path, [&[0; 40960][..], block].concat()).unwrap();
        let given = options(&[&["X-kata.dmverity.hashoffset=40960"][..], more].concat());
        let verity = Verity::from_options(&given).unwrap().unwrap();
        verity.place(&File::open(&path).unwrap())
    };
    let expected = Place {
        start: 11,
        blocks: 9,
        salt: "ab01".into(),
    };
    assert_eq!(place(&superblock(), &[]).unwrap(), expected);
    assert_eq!(place(&superblock(), &["X-kata.dmverity.salt=AB01"]).unwrap(), expected);
    assert!(place(&superblock(), &["X-kata.dmverity.salt=ab02"]).is_err());
    assert!(place(&superblock(), &["X-kata.dmverity.blocksize=1024"]).is_err());
    let mut larger = superblock();
    larger[72] = 11;
    assert!(place(&larger, &[]).is_err());
    assert!(place(&[0; SUPERBLOCK_BYTES], &[]).is_err());
    std::fs::remove_file(&path).unwrap();
}

use super::*;

/// The keys of libnvme's `test/psk.c`, by what the vectors call them.
const TEXTS: [(&str, &str); 4] = [
    ("00-32", "NVMeTLSkey-1:00:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"),
    ("01-32", "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"),
    ("02-48", "NVMeTLSkey-1:02:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwP/w0S89ELi3W2LxIcLXVsDn8kXZQ==:"),
    ("00-48", "NVMeTLSkey-1:00:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwP/w0S89ELi3W2LxIcLXVsDn8kXZQ==:"),
];

// Key, form, identity (H and S are the names of host and subsystem of `test/psk.c`), TLS PSK. The identities of version 1 of "01-32" and
// "02-48", both ways, are those of `test/psk.c`. The rest was made with Python 3.11, hmac and hashlib:
//   expand(psk, info) = hmac(hmac(zeroes, psk), info + b"\1")[:len(psk)]
//   label(l, c) = pack(">H", len(psk)) + bytes([len(l)]) + l + bytes([len(c)]) + c        compat: pack("<H", len(psk)) + l + c
//   retained = expand(psk, label(b"tls13 HostNQN", host)); digest = b64(hmac(retained, host + b" " + subsystem + b" NVMe-over-Fabrics"))
//   tls = expand(retained, label(b"tls13 nvme-tls-psk", identity))                        version 1: b"01 " + digest
#[rustfmt::skip]
const VECTORS: [(&str, &str, &str, &str); 16] = [
    ("00-32", "v1", "NVMe1R01 H S quJVUJjp/BImWR0UQay/MjSfEgyAr6TyBOWybS/B404=", "a45d08ee4639c7570729bb3e57e905e466a49a15ece5401af906830c4d3bdb0b"),
    ("00-32", "v0", "NVMe0R01 H S", "ec85300ba827726bd3bc4fc07f3a34aec5fe7c8ccac05fefc2f021c74e0df9ef"),
    ("00-32", "v1-compat", "NVMe1R01 H S quJVUJjp/BImWR0UQay/MjSfEgyAr6TyBOWybS/B404=", "d50f6d3dd79345b6e8217744524df5ac0dc66964ff70cc5fd18e1b9d57ce7fcf"),
    ("00-32", "v0-compat", "NVMe0R01 H S", "e2b16189378b34adba9fec995ab479040cedec0bc7c6b47728ee4d8de6ff52ba"),
    ("01-32", "v1", "NVMe1R01 H S iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU=", "8fc3c0badfd4c0c66fa3ca33aadd0314f85536cc9bc47338b60f3e6e563786ca"),
    ("01-32", "v0", "NVMe0R01 H S", "05c6503551ad136e6ee32e6eeb3f6d500b69701d84ec71e328f65c7f51566f68"),
    ("01-32", "v1-compat", "NVMe1R01 H S 66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM=", "b9f5ab2a41ba6e72a23a12066302a2f775fa6c0942c8e0b18ca8ac07edf305e2"),
    ("01-32", "v0-compat", "NVMe0R01 H S", "09fb1983ac6d6d0353e7cae4f23daddd651c367fa347c59d9cf6936f5a83eafb"),
    ("02-48", "v1", "NVMe1R02 H S QhW2+Rp6RzHlNtCslyRxMnwJ11tKKhz8JCAQpQ+XUD8f9td1VeH5h53yz2wKJG1a", "a2b2f943f479fc682555cec89857c80ed004ce92f32a973d5764155bb7e36b17a85368a0666d250afac9282dda2e62ca"),
    ("02-48", "v0", "NVMe0R02 H S", "f42ba63824cdfe421914c582921f85b5b5b7e2d4df084caeedc9be20b212e8bb0fe8a23e9d59a1c8fc6449da4970a78d"),
    ("02-48", "v1-compat", "NVMe1R02 H S RsKmYJ3nAn1ApjjMloJFbAkLPivONDAX/xW327YBUsn2eGShXSjCZvBaOxscLqmz", "fcefe2e2a2e682b1447dcabf1ec268f78f08c63cd075753abcc8bda2c5c34d48d3014aa8d76ad80107e4f5c9f27e2149"),
    ("02-48", "v0-compat", "NVMe0R02 H S", "2ee4754186a625b28a3936ef4a40d839c3ad958b2e017562ee07e2501f172ce999dc9c29033ea7ee33f814f192c13f47"),
    ("00-48", "v1", "NVMe1R02 H S dyoPfSR5TBRaPMI5/FXUlJv2XMDtmQ7Q9Xrj89aBKbyRYkQeT5V1wNvIpnMDRTQW", "1569317890995e207ab4cf148bc53470561e148030cb019b1d87fb4bc5794a791ed5ee68676c952ce5f11f3786e900d4"),
    ("00-48", "v0", "NVMe0R02 H S", "b5dd464067a9378ba2226d71f005d7ac90ed8696e4b2142084384365597201d33ba26f8aeeb529574d4267bd294a828e"),
    ("00-48", "v1-compat", "NVMe1R02 H S dyoPfSR5TBRaPMI5/FXUlJv2XMDtmQ7Q9Xrj89aBKbyRYkQeT5V1wNvIpnMDRTQW", "f6259eaeaab509d2e42bc494098bd1ccc4334b2528a1a34ea95fbe27e3fa75e3422d260a299110afa42170521b02d689"),
    ("00-48", "v0-compat", "NVMe0R02 H S", "9cb989c1d40fdcdc1bb729d6691901bfcd0b310f060f558d4a63c7afc2a0923f2d0610073fded349d25d6b3f91980826"),
];

fn nqn(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

fn key(name: &str) -> ConfiguredPsk {
    ConfiguredPsk::parse(TEXTS.iter().find(|(known, _)| *known == name).unwrap().1).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn texts_are_read_and_written_as_libnvme_does() {
    for (name, text) in TEXTS {
        let read = ConfiguredPsk::parse(&format!(" {text}\n")).unwrap();
        let bytes = name.split_once('-').unwrap().1;
        assert_eq!(read.to_text().as_str(), text);
        let transform = if name.starts_with("00") { "None" } else { "ByHash" };
        assert_eq!(format!("{read:?}"), format!("ConfiguredPsk({bytes} bytes, {transform})"));
    }
    let made = ConfiguredPsk::from_random(&[7; RANDOM_BYTES], Suite::Aes256GcmSha384, Transform::ByHash);
    assert_eq!(ConfiguredPsk::parse(&made.to_text()).unwrap().suite(), Suite::Aes256GcmSha384);
}

#[test]
fn identities_and_keys_are_what_other_programs_make() {
    let (host, subsystem) = (nqn("nqn.psk-test-host"), nqn("nqn.psk-test-subsys"));
    for (name, form, identity, told) in VECTORS {
        let form = Form::of_name(form).unwrap();
        let psk = key(name).tls_psk(&host, &subsystem, form).unwrap();
        let identity = identity.replacen(" H S", " nqn.psk-test-host nqn.psk-test-subsys", 1);
        assert_eq!((psk.identity(), hex(psk.key()).as_str()), (identity.as_str(), told), "{name} {}", form.name());
        assert!(!format!("{psk:?}").contains(&told[..16]));
        let answer = key(name).answer(identity.as_bytes(), form.derivation, |asked| *asked == subsystem).unwrap();
        assert_eq!((answer.psk.key(), &answer.host, &answer.subsystem), (psk.key(), &host, &subsystem));
    }
}

#[test]
fn what_is_no_key_is_refused_and_not_repeated() {
    let good = TEXTS[1].1;
    let cases = [
        ("", PskError::Form),
        (&good[..good.len() - 1], PskError::Form),
        (&good.replace("NVMeTLSkey-1", "NVMeTLSkey-2"), PskError::Form),
        (&good.replace(":01:", ":03:"), PskError::Transform),
        (&good.replace(":01:", ":02:"), PskError::Length(32)),
        (&TEXTS[2].1.replace(":02:", ":01:"), PskError::Length(48)),
        (&good.replacen('V', "W", 2), PskError::Form),
        (&good.replacen("VRL", "WRL", 1), PskError::Checksum),
        ("NVMeTLSkey-1:00:AAAA:", PskError::Length(0)),
        // 64 bytes, as a key of authentication may have.
        (
            "NVMeTLSkey-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P4zODhA=:",
            PskError::Length(64),
        ),
    ];
    for (text, why) in cases {
        assert_eq!(ConfiguredPsk::parse(text).err(), Some(why), "{text}");
    }
}

#[test]
fn names_that_are_too_long_for_version_0_are_refused_there() {
    let name = |len: usize| nqn(&format!("nqn.{}", "x".repeat(len - 4)));
    let v0 = Form { version: Version::V0, derivation: Derivation::Standard };
    // "NVMe0R01 ", a space between.
    assert!(key("01-32").tls_psk(&name(122), &name(123), v0).is_ok());
    for derivation in [Derivation::Standard, Derivation::Compat] {
        let of = key("01-32").tls_psk(&name(123), &name(123), Form { derivation, ..v0 });
        assert_eq!(of.err(), Some(PskError::Names(256)));
    }
    let longest = key("02-48").tls_psk(&name(NQN_BYTES_MAX), &name(NQN_BYTES_MAX), Form::default()).unwrap();
    assert_eq!(longest.identity().len(), IDENTITY_BYTES_MAX);
    assert!(key("02-48").answer(longest.identity().as_bytes(), Derivation::Standard, |_| true).is_some());
}

#[test]
fn identities_of_others_have_no_answer() {
    let good = key("01-32").tls_psk(&nqn("nqn.a"), &nqn("nqn.b"), Form::default()).unwrap().identity().to_owned();
    let answer = |identity: &[u8]| key("01-32").answer(identity, Derivation::Standard, |name| name.as_str() == "nqn.b");
    assert!(answer(good.as_bytes()).is_some() && answer(b"NVMe0R01 nqn.a nqn.b").is_some());
    let others: [&[u8]; 12] = [
        b"",
        b"NVMe0R",
        b"\xFF\xFE",
        b"NVMe0R02 nqn.a nqn.b",
        b"NVMe2R01 nqn.a nqn.b",
        b"NVMe0R01 nqn.a nqn.c",
        b"NVMe0R01 nqn.a nqn.b ",
        b"NVMe0R01  nqn.a nqn.b",
        b"NVMe0R01 nqn.a",
        b"NVMe0R01 host nqn.b",
        b"NVMe1R01 nqn.a nqn.b",
        b"NVMe1R01 nqn.a nqn.b AAAA",
    ];
    for other in others {
        assert!(answer(other).is_none(), "{}", String::from_utf8_lossy(other));
    }
    assert!(answer(&[b'x'; 1 << 16]).is_none());
    // The digest of another key.
    let of_other = key("00-32").tls_psk(&nqn("nqn.a"), &nqn("nqn.b"), Form::default()).unwrap();
    assert!(answer(of_other.identity().as_bytes()).is_none());
}

#[test]
fn traffic_keys_are_those_of_the_published_trace() {
    // RFC 8448 §3 "Simple 1-RTT Handshake": "{server} derive write traffic keys for application data".
    let secret: Vec<u8> = (0..32)
        .map(|at| {
            let text = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
            u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()
        })
        .collect();
    let (key, iv) = traffic_key(Suite::Aes128GcmSha256, &secret);
    assert_eq!((hex(&key), hex(&iv)), ("9f02283b6c9c07efc26bb9f2ac92e356".into(), "cf782b88dd83549aadf1e984".into()));
}

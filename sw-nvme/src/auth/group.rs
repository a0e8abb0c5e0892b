//! Diffie-Hellman over the groups of RFC 7919.
//!
//! All primes are safe, p = 2q + 1, and the generator is 2: there is no small subgroup but that of 1 and p - 1, and a value of a peer
//! between them is one that can be used (RFC 7919 §5.1). Exponents have 512 bits, more than twice the strength of the largest group
//! (RFC 7919 appendix A: 400 bits for ffdhe8192).

use crypto_bigint::{
    BoxedUint, Odd,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use zeroize::{Zeroize as _, Zeroizing};

use super::RANDOM_BYTES;

/// Bits of an exponent.
const EXPONENT_BITS: u32 = 512;
const _: () = assert!(EXPONENT_BITS as usize == 8 * RANDOM_BYTES, "an exponent takes all of the random bytes");
/// Bytes of the largest value.
pub const VALUE_BYTES_MAX: usize = 1024;

/// A group, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// None: responses are made of the challenges alone.
    Null,
    /// Of 2,048 bits.
    Ffdhe2048,
    /// Of 3,072 bits.
    Ffdhe3072,
    /// Of 4,096 bits.
    Ffdhe4096,
    /// Of 6,144 bits.
    Ffdhe6144,
    /// Of 8,192 bits.
    Ffdhe8192,
}

impl Group {
    /// All, in the order in which they are offered: one that hides what was learnt from a secret that is lost later comes first.
    pub const ALL: [Self; 6] =
        [Self::Ffdhe2048, Self::Ffdhe3072, Self::Ffdhe4096, Self::Ffdhe6144, Self::Ffdhe8192, Self::Null];

    /// DHgID.
    pub const fn id(self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 1,
            Self::Ffdhe3072 => 2,
            Self::Ffdhe4096 => 3,
            Self::Ffdhe6144 => 4,
            Self::Ffdhe8192 => 5,
        }
    }

    /// Of a DHgID; `None` for one that is not known.
    pub fn of(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    /// Its name, as settings have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ffdhe2048 => "ffdhe2048",
            Self::Ffdhe3072 => "ffdhe3072",
            Self::Ffdhe4096 => "ffdhe4096",
            Self::Ffdhe6144 => "ffdhe6144",
            Self::Ffdhe8192 => "ffdhe8192",
        }
    }

    fn prime_hex(self) -> &'static str {
        match self {
            Self::Null => "",
            Self::Ffdhe2048 => FFDHE2048,
            Self::Ffdhe3072 => FFDHE3072,
            Self::Ffdhe4096 => FFDHE4096,
            Self::Ffdhe6144 => FFDHE6144,
            Self::Ffdhe8192 => FFDHE8192,
        }
    }

    /// Bytes of a value; 0 without a group.
    pub fn value_bytes(self) -> usize {
        self.prime_hex().len() / 2
    }

    fn bits(self) -> u32 {
        // At most 8,192.
        u32::try_from(8 * self.value_bytes()).unwrap_or(0)
    }

    fn prime(self) -> Option<Odd<BoxedUint>> {
        if self == Self::Null {
            return None;
        }
        let prime: Option<BoxedUint> = BoxedUint::from_be_hex(self.prime_hex(), self.bits()).into();
        prime.and_then(|prime| Odd::new(prime).into())
    }
}

/// One end of an exchange of values. The exponent is wiped when it is dropped.
pub(super) struct Pair {
    group: Group,
    params: BoxedMontyParams,
    exponent: Zeroizing<BoxedUint>,
    /// What goes to the peer, as long as the prime.
    pub(super) value: Vec<u8>,
}

impl Pair {
    /// Of a random exponent; `None` without a group.
    pub(super) fn new(group: Group, random: &[u8; RANDOM_BYTES]) -> Option<Self> {
        let params = BoxedMontyParams::new(group.prime()?);
        let exponent = Zeroizing::new(BoxedUint::from_be_slice(random, EXPONENT_BITS).ok()?);
        let two = BoxedUint::from_be_slice(&[2], group.bits()).ok()?;
        let value = power(two, &exponent, &params).to_vec();
        Some(Self { group, params, exponent, value })
    }

    /// What both know, as long as the prime. `None` for a value of the peer's that is 0, 1, p - 1, beyond, or of another length.
    pub(super) fn shared(&self, peer: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if peer.len() != self.group.value_bytes() {
            return None;
        }
        let value = BoxedUint::from_be_slice(peer, self.group.bits()).ok()?;
        let last = self.params.modulus().as_ref().wrapping_sub(BoxedUint::one());
        if value <= BoxedUint::one() || value >= last {
            return None;
        }
        Some(power(value, &self.exponent, &self.params))
    }
}

/// `base` to the power of `exponent`, in a time that does not depend on the exponent.
fn power(base: BoxedUint, exponent: &BoxedUint, params: &BoxedMontyParams) -> Zeroizing<Vec<u8>> {
    let mut result = BoxedMontyForm::new(base, params).pow_bounded_exp(exponent, EXPONENT_BITS);
    let mut number = result.retrieve();
    let mut bytes = number.to_be_bytes();
    let out = Zeroizing::new(bytes.to_vec());
    bytes.zeroize();
    number.zeroize();
    result.zeroize();
    out
}

/// The prime of ffdhe2048 (RFC 7919 appendix A).
const FFDHE2048: &str = concat!(
    "ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8",
    "f681b202aec4617ad3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe872",
    "1df158a136ade73530acca4f483a797abc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb19",
    "0b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005",
    "c58ef1837d1683b2c6f34a26c1b2effa886b423861285c97ffffffffffffffff",
);
/// The prime of ffdhe3072 (RFC 7919 appendix A).
const FFDHE3072: &str = concat!(
    "ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8",
    "f681b202aec4617ad3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe872",
    "1df158a136ade73530acca4f483a797abc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb19",
    "0b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005",
    "c58ef1837d1683b2c6f34a26c1b2effa886b4238611fcfdcde355b3b6519035bbc34f4def99c023861b46fc9d6e6c9077ad91d2691f7f7ee",
    "598cb0fac186d91caefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff5cae82ab9c9df69ee86d2bc522363a0d",
    "abc521979b0deada1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c25e41d2b66c62e37ffffffffffffffff",
);
/// The prime of ffdhe4096 (RFC 7919 appendix A).
const FFDHE4096: &str = concat!(
    "ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8",
    "f681b202aec4617ad3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe872",
    "1df158a136ade73530acca4f483a797abc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb19",
    "0b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005",
    "c58ef1837d1683b2c6f34a26c1b2effa886b4238611fcfdcde355b3b6519035bbc34f4def99c023861b46fc9d6e6c9077ad91d2691f7f7ee",
    "598cb0fac186d91caefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff5cae82ab9c9df69ee86d2bc522363a0d",
    "abc521979b0deada1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c25e41d2b669e1ef16e6f52c3164df4fb7930e9e4e58857b6",
    "ac7d5f42d69f6d187763cf1d5503400487f55ba57e31cc7a7135c886efb4318aed6a1e012d9e6832a907600a918130c46dc778f971ad0038",
    "092999a333cb8b7a1a1db93d7140003c2a4ecea9f98d0acc0a8291cdcec97dcf8ec9b55a7f88a46b4db5a851f44182e1c68a007e5e655f6a",
    "ffffffffffffffff",
);
/// The prime of ffdhe6144 (RFC 7919 appendix A).
const FFDHE6144: &str = concat!(
    "ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8",
    "f681b202aec4617ad3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe872",
    "1df158a136ade73530acca4f483a797abc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb19",
    "0b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005",
    "c58ef1837d1683b2c6f34a26c1b2effa886b4238611fcfdcde355b3b6519035bbc34f4def99c023861b46fc9d6e6c9077ad91d2691f7f7ee",
    "598cb0fac186d91caefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff5cae82ab9c9df69ee86d2bc522363a0d",
    "abc521979b0deada1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c25e41d2b669e1ef16e6f52c3164df4fb7930e9e4e58857b6",
    "ac7d5f42d69f6d187763cf1d5503400487f55ba57e31cc7a7135c886efb4318aed6a1e012d9e6832a907600a918130c46dc778f971ad0038",
    "092999a333cb8b7a1a1db93d7140003c2a4ecea9f98d0acc0a8291cdcec97dcf8ec9b55a7f88a46b4db5a851f44182e1c68a007e5e0dd902",
    "0bfd64b645036c7a4e677d2c38532a3a23ba4442caf53ea63bb454329b7624c8917bdd64b1c0fd4cb38e8c334c701c3acdad0657fccfec71",
    "9b1f5c3e4e46041f388147fb4cfdb477a52471f7a9a96910b855322edb6340d8a00ef092350511e30abec1fff9e3a26e7fb29f8c183023c3",
    "587e38da0077d9b4763e4e4b94b2bbc194c6651e77caf992eeaac0232a281bf6b3a739c1226116820ae8db5847a67cbef9c9091b462d538c",
    "d72b03746ae77f5e62292c311562a846505dc82db854338ae49f5235c95b91178ccf2dd5cacef403ec9d1810c6272b045b3b71f9dc6b80d6",
    "3fdd4a8e9adb1e6962a69526d43161c1a41d570d7938dad4a40e329cd0e40e65ffffffffffffffff",
);
/// The prime of ffdhe8192 (RFC 7919 appendix A).
const FFDHE8192: &str = concat!(
    "ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8",
    "f681b202aec4617ad3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe872",
    "1df158a136ade73530acca4f483a797abc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb19",
    "0b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005",
    "c58ef1837d1683b2c6f34a26c1b2effa886b4238611fcfdcde355b3b6519035bbc34f4def99c023861b46fc9d6e6c9077ad91d2691f7f7ee",
    "598cb0fac186d91caefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff5cae82ab9c9df69ee86d2bc522363a0d",
    "abc521979b0deada1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c25e41d2b669e1ef16e6f52c3164df4fb7930e9e4e58857b6",
    "ac7d5f42d69f6d187763cf1d5503400487f55ba57e31cc7a7135c886efb4318aed6a1e012d9e6832a907600a918130c46dc778f971ad0038",
    "092999a333cb8b7a1a1db93d7140003c2a4ecea9f98d0acc0a8291cdcec97dcf8ec9b55a7f88a46b4db5a851f44182e1c68a007e5e0dd902",
    "0bfd64b645036c7a4e677d2c38532a3a23ba4442caf53ea63bb454329b7624c8917bdd64b1c0fd4cb38e8c334c701c3acdad0657fccfec71",
    "9b1f5c3e4e46041f388147fb4cfdb477a52471f7a9a96910b855322edb6340d8a00ef092350511e30abec1fff9e3a26e7fb29f8c183023c3",
    "587e38da0077d9b4763e4e4b94b2bbc194c6651e77caf992eeaac0232a281bf6b3a739c1226116820ae8db5847a67cbef9c9091b462d538c",
    "d72b03746ae77f5e62292c311562a846505dc82db854338ae49f5235c95b91178ccf2dd5cacef403ec9d1810c6272b045b3b71f9dc6b80d6",
    "3fdd4a8e9adb1e6962a69526d43161c1a41d570d7938dad4a40e329ccff46aaa36ad004cf600c8381e425a31d951ae64fdb23fcec9509d43",
    "687feb69edd1cc5e0b8cc3bdf64b10ef86b63142a3ab8829555b2f747c932665cb2c0f1cc01bd70229388839d2af05e454504ac78b758282",
    "2846c0ba35c35f5c59160cc046fd8251541fc68c9c86b022bb7099876a460e7451a8a93109703fee1c217e6c3826e52c51aa691e0e423cfc",
    "99e9e31650c1217b624816cdad9a95f9d5b8019488d9c0a0a1fe3075a577e23183f81d4a3f2fa4571efc8ce0ba8a4fe8b6855dfe72b0a66e",
    "ded2fbabfbe58a30fafabe1c5d71a87e2f741ef8c1fe86fea6bbfde530677f0d97d11d49f7a8443d0822e506a9f4614e011e2a94838ff88c",
    "d68c8bb7c5c6424cffffffffffffffff",
);

#[cfg(test)]
mod tests {
    use super::*;
    use crypto_bigint::Resize as _;

    use crate::auth::{Hash, response};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn exponent(text: &str) -> [u8; RANDOM_BYTES] {
        let padded = format!("{text:0>128}");
        core::array::from_fn(|at| u8::from_str_radix(&padded[2 * at..2 * at + 2], 16).unwrap())
    }

    fn small(number: u64, bits: u32) -> BoxedUint {
        BoxedUint::from_be_slice(&number.to_be_bytes(), bits).unwrap()
    }

    /// A second source of the primes: RFC 7919 appendix A has them as 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1, where e is
    /// the base of the natural logarithm. It is summed here, 1 + 1 + 1/2 + 1/6 and so on.
    #[test]
    fn the_primes_are_what_the_formula_of_the_document_gives() {
        let more = [560_316, 2_625_351, 5_736_041, 15_705_020, 10_965_728];
        for (group, more) in Group::ALL.into_iter().zip(more) {
            let bits = group.bits();
            // 128 bits that are rounded in the sum, and dropped.
            let wide = bits + 128;
            let mut term = BoxedUint::one().resize(wide).shl(bits - 2);
            let (mut sum, mut n) = (term.clone(), 0);
            while !bool::from(term.is_zero()) {
                n += 1;
                term = term.wrapping_div_vartime(&crypto_bigint::NonZero::new(small(n, wide)).unwrap());
                sum = sum.wrapping_add(&term);
            }
            let middle = sum.shr(128).wrapping_add(small(more, wide)).shl(64);
            let one = BoxedUint::one().resize(wide);
            let (top, ones) = (one.shl(bits), one.shl(bits - 64));
            let prime = top.wrapping_sub(&ones).wrapping_add(&middle).wrapping_sub(&one);
            assert_eq!(hex(&prime.resize(bits).to_be_bytes()), group.prime_hex(), "{}", group.name());
        }
    }

    // Each line: two private keys that OpenSSL 3.0.19 made (openssl genpkey -algorithm DH -pkeyopt group:ffdhe2048 …), and SHA-256 of
    // both public keys and of what openssl pkeyutl -derive made of them, padded to the length of the prime, as Python's
    // pow(2, a, p) and pow(B, a, p) have them too.
    const OPENSSL: [(Group, [&str; 5]); 5] = [
        (
            Group::Ffdhe2048,
            [
                "158496c440de87ce4acb5528f90f14621d56e17cb867b07d0517cb226",
                "1748146355817a07aafd7a9eb25d390d675ee2f16f896301235872329",
                "aa53f142113db511beb0ce79e58de57e43c6ad9d52bf3392be238bb870378b97",
                "735d3cead403b08550c8e7e6bda0bd5edf3795067215e6827941279e8ed5ac95",
                "f6e531b02914ac9f01b9f2c7757695a36f7bda19ea567c39ff6051bbd1b6c022",
            ],
        ),
        (
            Group::Ffdhe3072,
            [
                "354449858b8013c2ae804bab461b4cec20ad62f82012eac78749b586f6555bf9d7be6",
                "55f35c501f2eb77dc0c2728140c5c3f3dcf6cb03848b4a7916346cc19ab0c3e19f722",
                "cc5d9592b48a4516cc35fd495f910ace09f10eae6728d42aa196f4be88ea6a1a",
                "7d04ef2a68c97b6dc5f59cae1d14581a83194740cd8282fad4519db3c5b787ca",
                "355fb3c22a0809a91f495dc382c86778dc79987e5c05b4ed9b2f3b5eed14bf7d",
            ],
        ),
        (
            Group::Ffdhe4096,
            [
                "1128c2ee52b0a7ca5fae8975ec288a013d299b0f3f1cd1665e600f27e5020a7615d6ced10691de42c2",
                "363d5ee618d721db0a8c1ed2526a43a51643f66219dda07dd911a92cc9487eb999a3398a2a7cbcfe8",
                "5bec1ff7bf3fdff8c7f48ad15232a06474ff619566873f2bfcba6fe751132b5d",
                "619f54373d65a854741fcdf8e7b65f80313ba35210f79df146b3e1746986008f",
                "3e846f82bd977e7e5d4aafda846a9f9e9902b8ddb8e6abdff6f06aa99bbbc562",
            ],
        ),
        (
            Group::Ffdhe6144,
            [
                "11c46da09d732d0b77ba4976a131b0fdceb1d723208d2b1277e30bbeef2b349243798d5b7570d8c85d9517879d7271",
                "1597055e9fdcf8db27db30727b8b8ffeeb8bc49d563a2fa5664c53856ecb5308564a3db792d8600b87781502a35d32",
                "504512d2416c867e170a8194ae9f2d3fd39f0383ba9803756b6dec5c518f0fad",
                "932b84176c3437bf5b149418ab1a05e4e6501631f11fbf9d8397db2f363b310b",
                "7e9018dadf5f89609ebab13ac1cdbd1b40ed23d3a2b1062408481fc8fb2d50f5",
            ],
        ),
        (
            Group::Ffdhe8192,
            [
                "500576574daa240e98d7458f7fbb9820beb228682f84ffd9e75b200c1b63762d9f58343fe2884c6aab155453d13f4759a357",
                "e826329915571b739b9925397270136567a236e4303e6d462591888533a068f95dcbfe0b16bcfdb91b5d3d90744761c4946b",
                "1190155cdcb0dc9c9417bd00e8f407df1e9b5f1bba4322f25624bd24aba81ee1",
                "b018d69010cc311cfee0e62b6cea9d50d7fbcc9e8a43d76060f34b73244012c3",
                "09d4422a4085daf32fdc02e6761f62d693cae06280016d9324ce41ad33f45a38",
            ],
        ),
    ];

    #[test]
    fn both_ends_know_what_another_program_knows() {
        for (group, [a, b, public_a, public_b, shared]) in OPENSSL {
            let [one, other] = [a, b].map(|text| Pair::new(group, &exponent(text)).unwrap());
            let sum = |bytes: &[u8]| hex(&response::digest(Hash::Sha256, bytes));
            assert_eq!(
                (sum(&one.value).as_str(), sum(&other.value).as_str()),
                (public_a, public_b),
                "{}",
                group.name()
            );
            let known = [one.shared(&other.value).unwrap(), other.shared(&one.value).unwrap()];
            assert_eq!(known.map(|known| sum(&known)), [shared; 2], "{}", group.name());
        }
        assert!(Pair::new(Group::Null, &[7; RANDOM_BYTES]).is_none());
    }

    #[test]
    fn values_that_give_the_secret_away_are_refused() {
        let group = Group::Ffdhe2048;
        let pair = Pair::new(group, &[7; RANDOM_BYTES]).unwrap();
        let number = |n: u64| small(n, group.bits()).to_be_bytes();
        let before = |n: u64| pair.params.modulus().as_ref().wrapping_sub(small(n, group.bits())).to_be_bytes();
        for wrong in [number(0), number(1), before(1), before(0), vec![0xFF; 256].into()] {
            assert!(pair.shared(&wrong).is_none());
        }
        assert!(pair.shared(&number(2)).is_some() && pair.shared(&before(2)).is_some());
        for len in [0, 1, 255, 257, 384] {
            assert!(pair.shared(&vec![2; len]).is_none());
        }
    }
}

//! Which addresses count as one, where something is limited by address.

use std::net::{IpAddr, Ipv6Addr};

/// What an address counts as wherever something is limited by address: an IPv4 address as itself, also where it is written
/// as IPv6 (RFC 4291 section 2.5.5.2), and an IPv6 address as its /64, which is what one subscriber gets (RFC 6177), so that
/// none has 2^64 of each limit.
pub fn address_group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_and_mapped_addresses_are_ipv4() {
        let group = |text: &str| address_group(text.parse().unwrap()).to_string();
        assert_eq!(group("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(group("2001:db8:1:2:ffff::1"), group("2001:db8:1:2::2"));
        assert_ne!(group("2001:db8:1:3::1"), group("2001:db8:1:2::1"));
        assert_eq!(group("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(group("10.0.0.1"), "10.0.0.1");
    }
}

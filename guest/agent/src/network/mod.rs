//! The guest's interfaces, routes and neighbours, as the host describes them.

mod address;
mod netlink;

use crate::error::{Context, Error, Result};
use crate::proto::types::{ArpNeighbor, Interface, IpAddress, IpFamily, Route};
use crate::uevent::Uevents;
use address::{mac_text, parse_ip, parse_mac, prefix_length, Ip};
use netlink::{find, number, Body, Message, Netlink};
use std::time::Duration;

/// A network device that the host plugged in is there within this time.
const APPEAR_MAX: Duration = Duration::from_secs(10);
/// Sizes of ifinfomsg, ifaddrmsg, rtmsg.
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;
const RTAX_MTU: u16 = 2;

/// One interface of the kernel's.
#[derive(Clone, Debug, Default)]
struct Link {
    index: u32,
    flags: u32,
    name: String,
    mac: String,
    mtu: u32,
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>> {
    let parse = |message: &Message| Link {
        index: message.word(4),
        flags: message.word(8),
        name: text(message.attribute(LINK_BYTES, libc::IFLA_IFNAME).unwrap_or_default()),
        mac: mac_text(message.attribute(LINK_BYTES, libc::IFLA_ADDRESS).unwrap_or_default()),
        mtu: message.attribute(LINK_BYTES, libc::IFLA_MTU).map_or(0, number),
    };
    let messages = netlink
        .dump(libc::RTM_GETLINK, Body::new(&[0; LINK_BYTES]))
        .context("list interfaces")?;
    Ok(messages.iter().map(parse).collect())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The interface with that hardware address; waits for it. The loopback has one of zeros, and is the guest's own.
async fn find_by_mac(netlink: &mut Netlink, mac: &str) -> Result<Link> {
    let mac = mac_text(&parse_mac(mac)?);
    let uevents = Uevents::open()?;
    let wait = async {
        loop {
            let loopback = |link: &Link| link.flags & libc::IFF_LOOPBACK as u32 != 0;
            let mut links = links(netlink)?.into_iter();
            if let Some(link) = links.find(|link| link.mac == mac && !loopback(link)) {
                return Ok(link);
            }
            uevents.added("net").await?;
        }
    };
    let late = || {
        Error::not_found(format!(
            "no interface with the hardware address {mac} appeared in {APPEAR_MAX:?}"
        ))
    };
    tokio::time::timeout(APPEAR_MAX, wait)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Gives the interface with the request's hardware address its name, MTU and addresses (those alone), and brings it up. What is so already
/// stays untouched: connections and routes live on.
pub async fn update_interface(wanted: &Interface) -> Result<Interface> {
    let mut netlink = Netlink::open()?;
    let link = find_by_mac(&mut netlink, &wanted.hw_addr).await?;
    let what = || format!("set up the interface {:?} ({})", wanted.name, wanted.hw_addr);
    apply(&mut netlink, &link, wanted).with_context(what)?;
    Ok(wanted.clone())
}

fn apply(netlink: &mut Netlink, link: &Link, wanted: &Interface) -> Result<()> {
    if !wanted.name.is_empty() && wanted.name != link.name {
        if let Some(other) = links(netlink)?.into_iter().find(|other| other.name == wanted.name) {
            rename(netlink, other.index, &format!("was{}", other.index))?;
        }
        rename(netlink, link.index, &wanted.name)?;
    }
    let mut missing = wanted
        .ip_addresses
        .iter()
        .map(parse_address)
        .collect::<Result<Vec<_>>>()?;
    for message in netlink.dump(libc::RTM_GETADDR, Body::new(&[0; ADDRESS_BYTES]))? {
        const SCOPE_LINK: u8 = 253;
        if message.word(4) != link.index {
            continue;
        }
        let known = missing.len();
        missing.retain(|(ip, length)| local_address(&message).as_ref() != Some(ip) || message.byte(1) != *length);
        // The kernel's own link-local addresses stay.
        if missing.len() == known && message.byte(3) != SCOPE_LINK {
            delete_address(netlink, &message).context("remove an address")?;
        }
    }
    let noarp = libc::IFF_NOARP as u32;
    let up = libc::IFF_UP as u32 | (wanted.raw_flags & noarp);
    let mut body = Body::new(&link_header(link.index, up, libc::IFF_UP as u32 | noarp));
    if wanted.mtu > 0 {
        let mtu = u32::try_from(wanted.mtu).map_err(|_| Error::invalid(format!("{} is no MTU", wanted.mtu)))?;
        body = body.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
    }
    netlink
        .change(libc::RTM_NEWLINK, 0, body)
        .context("set MTU and flags")?;
    for (ip, length) in &missing {
        add_address(netlink, link.index, ip, *length).with_context(|| format!("add {ip}/{length}"))?;
    }
    Ok(())
}

fn parse_address(address: &IpAddress) -> Result<(Ip, u8)> {
    let ip = parse_ip(&address.address)?;
    let length = prefix_length(&address.mask, &ip)?;
    Ok((ip, length))
}

/// The own end of an address of the kernel's list.
fn local_address(message: &Message) -> Option<Ip> {
    let local = message.attribute(ADDRESS_BYTES, libc::IFA_LOCAL);
    Ip::from_bytes(local.or_else(|| message.attribute(ADDRESS_BYTES, libc::IFA_ADDRESS))?)
}

fn link_header(index: u32, flags: u32, mask: u32) -> Vec<u8> {
    let mut header = vec![0u8; 4];
    for word in [index, flags, mask] {
        header.extend(word.to_ne_bytes());
    }
    header
}

/// An interface changes its name while it is down only.
fn rename(netlink: &mut Netlink, index: u32, name: &str) -> Result<()> {
    let down = Body::new(&link_header(index, 0, libc::IFF_UP as u32));
    netlink.change(libc::RTM_NEWLINK, 0, down).context("take it down")?;
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    let body = Body::new(&link_header(index, 0, 0)).attribute(libc::IFLA_IFNAME, &bytes);
    netlink
        .change(libc::RTM_NEWLINK, 0, body)
        .with_context(|| format!("name it {name}"))
}

fn delete_address(netlink: &mut Netlink, message: &Message) -> Result<()> {
    let header: Vec<u8> = (0..ADDRESS_BYTES).map(|at| message.byte(at)).collect();
    let mut body = Body::new(&header);
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body = body.maybe(kind, message.attribute(ADDRESS_BYTES, kind));
    }
    netlink.change(libc::RTM_DELADDR, 0, body)
}

fn add_address(netlink: &mut Netlink, index: u32, ip: &Ip, length: u8) -> Result<()> {
    /// No duplicate address detection: the host gave the address out.
    const IFA_F_NODAD: u8 = 2;
    let mut header = vec![ip.family(), length, IFA_F_NODAD, 0];
    header.extend(index.to_ne_bytes());
    let body = Body::new(&header)
        .attribute(libc::IFA_LOCAL, ip.bytes())
        .attribute(libc::IFA_ADDRESS, ip.bytes());
    netlink.change(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, body)
}

/// All interfaces with their addresses.
pub fn list_interfaces() -> Result<Vec<Interface>> {
    let mut netlink = Netlink::open()?;
    let addresses = netlink
        .dump(libc::RTM_GETADDR, Body::new(&[0; ADDRESS_BYTES]))
        .context("list addresses")?;
    let of = |index: u32| {
        let own = addresses.iter().filter(move |message| message.word(4) == index);
        own.filter_map(|message| {
            let ip = local_address(message)?;
            let family = if ip.is_v6() { IpFamily::V6 } else { IpFamily::V4 } as i32;
            Some(IpAddress {
                family,
                address: ip.to_string(),
                mask: message.byte(1).to_string(),
            })
        })
        .collect()
    };
    let describe = |link: Link| Interface {
        device: link.name.clone(),
        ip_addresses: of(link.index),
        name: link.name,
        mtu: link.mtu.into(),
        hw_addr: link.mac,
        raw_flags: link.flags & libc::IFF_NOARP as u32,
        ..Interface::default()
    };
    Ok(links(&mut netlink)?.into_iter().map(describe).collect())
}

/// Makes the main table hold these routes and no others (but those that the kernel makes for addresses, and by router advertisements). A route
/// to a destination that has one already takes its place, without a moment in which there is none.
pub fn update_routes(wanted: &[Route]) -> Result<Vec<Route>> {
    let mut netlink = Netlink::open()?;
    let links = links(&mut netlink)?;
    let kept = wanted.iter().map(destination).collect::<Result<Vec<_>>>()?;
    for message in dump_routes(&mut netlink)? {
        const PROTOCOL_KERNEL: u8 = 2;
        const PROTOCOL_RA: u8 = 9;
        let target = message.attribute(ROUTE_BYTES, libc::RTA_DST).and_then(Ip::from_bytes);
        let here = (i32::from(message.byte(0)) == libc::AF_INET6, target, message.byte(1));
        if ![PROTOCOL_KERNEL, PROTOCOL_RA].contains(&message.byte(5)) && !kept.contains(&here) {
            delete_route(&mut netlink, &message).context("remove a route")?;
        }
    }
    // A gateway must be reachable when its route is made.
    let (direct, through): (Vec<&Route>, Vec<&Route>) = wanted.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(through) {
        add_route(&mut netlink, &links, route).with_context(|| {
            format!(
                "add the route to {:?} by {:?} on {:?}",
                route.dest, route.gateway, route.device
            )
        })?;
    }
    list_routes()
}

/// Where a route leads: whether it is one of IPv6, its target (none: the default), and how many bits of it count.
fn destination(route: &Route) -> Result<(bool, Option<Ip>, u8)> {
    let (target, length) = match route.dest.as_str() {
        "" | "default" => (None, 0),
        dest => {
            let (ip, mask) = dest.split_once('/').unwrap_or((dest, ""));
            let ip = parse_ip(ip)?;
            let length = prefix_length(mask, &ip)?;
            (Some(ip), length)
        }
    };
    let (gateway, source) = (optional_ip(&route.gateway)?, optional_ip(&route.source)?);
    let any_v6 = [&target, &gateway, &source].into_iter().flatten().any(Ip::is_v6);
    Ok((route.family == IpFamily::V6 as i32 || any_v6, target, length))
}

/// An address that may be left out.
fn optional_ip(text: &str) -> Result<Option<Ip>> {
    if text.is_empty() {
        Ok(None)
    } else {
        parse_ip(text).map(Some)
    }
}

fn dump_routes(netlink: &mut Netlink) -> Result<Vec<Message>> {
    let messages = netlink
        .dump(libc::RTM_GETROUTE, Body::new(&[0; ROUTE_BYTES]))
        .context("list routes")?;
    let ours = |message: &Message| {
        message.byte(4) == libc::RT_TABLE_MAIN && message.byte(7) == libc::RTN_UNICAST && message.byte(0) != 0
    };
    Ok(messages.into_iter().filter(ours).collect())
}

fn delete_route(netlink: &mut Netlink, message: &Message) -> Result<()> {
    let header: Vec<u8> = (0..ROUTE_BYTES).map(|at| message.byte(at)).collect();
    let mut body = Body::new(&header);
    for kind in [libc::RTA_DST, libc::RTA_OIF, libc::RTA_GATEWAY, libc::RTA_PRIORITY] {
        body = body.maybe(kind, message.attribute(ROUTE_BYTES, kind));
    }
    netlink.change(libc::RTM_DELROUTE, 0, body)
}

fn add_route(netlink: &mut Netlink, links: &[Link], route: &Route) -> Result<()> {
    const PROTOCOL_BOOT: u8 = 3;
    let link = links.iter().find(|link| link.name == route.device);
    let link = link.ok_or_else(|| Error::not_found(format!("there is no interface {:?}", route.device)))?;
    let (v6, target, length) = destination(route)?;
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let mut header = vec![
        family,
        length,
        0,
        0,
        libc::RT_TABLE_MAIN,
        PROTOCOL_BOOT,
        route.scope as u8,
        libc::RTN_UNICAST,
    ];
    header.extend(route.flags.to_ne_bytes());
    let mut body = Body::new(&header).attribute(libc::RTA_OIF, &link.index.to_ne_bytes());
    for (kind, ip) in [
        (libc::RTA_DST, &target),
        (libc::RTA_GATEWAY, &optional_ip(&route.gateway)?),
        (libc::RTA_PREFSRC, &optional_ip(&route.source)?),
    ] {
        body = body.maybe(kind, ip.as_ref().map(Ip::bytes));
    }
    if route.mtu > 0 {
        let mut metric = 8u16.to_ne_bytes().to_vec();
        metric.extend(RTAX_MTU.to_ne_bytes());
        metric.extend(route.mtu.to_ne_bytes());
        body = body.attribute(libc::RTA_METRICS, &metric);
    }
    netlink.change(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, body)
}

/// The main table's routes.
pub fn list_routes() -> Result<Vec<Route>> {
    let mut netlink = Netlink::open()?;
    let links = links(&mut netlink)?;
    let describe = |message: Message| {
        let ip = |kind| message.attribute(ROUTE_BYTES, kind).and_then(Ip::from_bytes);
        let shown = |kind| ip(kind).map(|ip| ip.to_string()).unwrap_or_default();
        let index = message.attribute(ROUTE_BYTES, libc::RTA_OIF).map_or(0, number);
        let v6 = i32::from(message.byte(0)) == libc::AF_INET6;
        let metrics = message.attribute(ROUTE_BYTES, libc::RTA_METRICS).unwrap_or_default();
        Route {
            dest: ip(libc::RTA_DST)
                .map(|ip| format!("{ip}/{}", message.byte(1)))
                .unwrap_or_default(),
            gateway: shown(libc::RTA_GATEWAY),
            device: links
                .iter()
                .find(|link| link.index == index)
                .map(|link| link.name.clone())
                .unwrap_or_default(),
            source: shown(libc::RTA_PREFSRC),
            scope: message.byte(6).into(),
            family: if v6 { IpFamily::V6 } else { IpFamily::V4 } as i32,
            flags: message.word(8),
            mtu: find(metrics, RTAX_MTU).map_or(0, number),
        }
    };
    Ok(dump_routes(&mut netlink)?.into_iter().map(describe).collect())
}

/// Enters neighbours; they stay until replaced.
pub fn add_neighbours(neighbours: &[ArpNeighbor]) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let links = links(&mut netlink)?;
    for neighbour in neighbours {
        add_neighbour(&mut netlink, &links, neighbour)
            .with_context(|| format!("add the neighbour {:?} on {:?}", neighbour.lladdr, neighbour.device))?;
    }
    Ok(())
}

fn add_neighbour(netlink: &mut Netlink, links: &[Link], neighbour: &ArpNeighbor) -> Result<()> {
    const NUD_PERMANENT: u16 = 0x80;
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let link = links.iter().find(|link| link.name == neighbour.device);
    let link = link.ok_or_else(|| Error::not_found(format!("there is no interface {:?}", neighbour.device)))?;
    let address = neighbour
        .to_ip_address
        .as_ref()
        .ok_or_else(|| Error::invalid("it has no address"))?;
    let ip = parse_ip(&address.address)?;
    let state = if neighbour.state == 0 {
        NUD_PERMANENT
    } else {
        neighbour.state as u16
    };
    let mut header = vec![ip.family(), 0, 0, 0];
    header.extend(link.index.to_ne_bytes());
    header.extend(state.to_ne_bytes());
    header.extend([neighbour.flags as u8, libc::RTN_UNICAST]);
    let mut body = Body::new(&header).attribute(NDA_DST, ip.bytes());
    if !neighbour.lladdr.is_empty() {
        body = body.attribute(NDA_LLADDR, &parse_mac(&neighbour.lladdr)?);
    }
    netlink.change(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, body)
}

# SPDX-License-Identifier: GPL-2.0-only
# What `cmake --install BUILD --component programs --prefix /usr` puts down, where Debian has it: the programs, their manual pages, and what makes disks at
# boot: the unit and generator of systemd, the rule of udev, the hook and scripts of initramfs-tools. docs/boot.md
include(GNUInstallDirs)
set(NETBLK_SYSTEMD_DIR lib/systemd CACHE STRING "Where systemd looks for units and generators, below the prefix")
set(NETBLK_UDEV_DIR lib/udev CACHE STRING "Where udev looks for rules, below the prefix")
set(NETBLK_INITRAMFS_DIR share/initramfs-tools CACHE STRING "Where initramfs-tools looks for hooks and scripts, below the prefix")

set(component COMPONENT programs)
# The unit names the program's place, which is known when it is installed.
install(CODE "set(NETBLK_PROGRAM \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_SBINDIR}/netblk\")
configure_file(\"${PROJECT_SOURCE_DIR}/packaging/systemd/netblk@.service.in\" \"${PROJECT_BINARY_DIR}/packaging/netblk@.service\" @ONLY)"
        ${component})
install(TARGETS netblk_server RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR} ${component})
install(TARGETS netblk-generator RUNTIME DESTINATION ${NETBLK_SYSTEMD_DIR}/system-generators ${component})
if(TARGET netblk)
  install(TARGETS netblk RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR} ${component})
endif()
file(GLOB pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/docs/man/*.[458])
foreach(page ${pages})
  string(REGEX REPLACE ".*\\.([0-9])$" "\\1" section ${page})
  install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section} ${component})
endforeach()
install(FILES packaging/udev/60-netblk.rules DESTINATION ${NETBLK_UDEV_DIR}/rules.d ${component})
install(FILES ${PROJECT_BINARY_DIR}/packaging/netblk@.service DESTINATION ${NETBLK_SYSTEMD_DIR}/system ${component})
install(FILES packaging/systemd/run-netblk-.mount.d/10-netblk.conf DESTINATION ${NETBLK_SYSTEMD_DIR}/system/run-netblk-.mount.d ${component})
install(PROGRAMS packaging/initramfs-tools/hooks/netblk DESTINATION ${NETBLK_INITRAMFS_DIR}/hooks ${component})
foreach(stage local-top local-block)
  install(PROGRAMS packaging/initramfs-tools/scripts/${stage}/netblk DESTINATION ${NETBLK_INITRAMFS_DIR}/scripts/${stage} ${component})
endforeach()
